"""Layer 1: loading and saving models, tokenizers, devices, tiny configurations."""
