"""Steps that make or prepare data."""
