"""The paper's evaluation on our own photograph sets and public data sets, one file per task."""
