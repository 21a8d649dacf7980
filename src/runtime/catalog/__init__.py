"""The steps that can be run and the kinds of artifacts that they exchange."""
