"""Image sets in memory, their sources, and batches."""
