"""``data/dedup``: conversations, each once."""
