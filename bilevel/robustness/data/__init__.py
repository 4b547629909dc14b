"""Images in memory, where they come from, and batches of them."""
