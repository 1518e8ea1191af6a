"""The paper's evaluation: one file a task, over our own photograph sets and the public ones."""
