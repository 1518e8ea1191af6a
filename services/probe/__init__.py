"""``samclip probe``: fits a classifier of one's own classes to the embeddings of a service."""
