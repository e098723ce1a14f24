"""The data engine: from folders of documents to clean, deduplicated, described shards."""
