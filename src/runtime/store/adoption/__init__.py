"""Content from elsewhere becomes an artifact."""
