"""Layer 3: the rooms. Each folder here is one published method."""
