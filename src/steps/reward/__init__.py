"""Steps around reward models."""
