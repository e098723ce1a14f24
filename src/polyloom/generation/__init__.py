"""Layer 2: decoding of local models and chat with OpenAI-compatible servers."""
