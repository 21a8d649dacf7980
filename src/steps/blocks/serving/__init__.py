"""Models as HTTP services."""
