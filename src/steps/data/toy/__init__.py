"""A toy corpus whose truth is known: the small data set that every tiny config starts from."""
