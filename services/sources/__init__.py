"""Images in folders, lists, tables and shards, at a path or URL: listed, and read within limits."""
