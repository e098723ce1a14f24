"""Layer 1: readers of text formats and the embedded world."""
