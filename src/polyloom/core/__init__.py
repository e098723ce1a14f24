"""Layer 0: configuration, errors, registry, seeding, files, results. Standard library and pydantic only."""
