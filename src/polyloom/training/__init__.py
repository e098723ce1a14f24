"""Layer 2: the training loop, schedules, packing and checkpoints."""
