"""SAM-CLIP as a plain library: one image encoder that knows what and where."""
