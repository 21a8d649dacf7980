"""Steps that turn one form of a model into another."""
