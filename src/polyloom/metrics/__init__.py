"""Layer 1: text, tagging, language-model and statistical metrics."""
