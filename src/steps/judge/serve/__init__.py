"""A chat model as a service."""
