"""Layer 2: run folders, resume, provenance and the index of runs."""
