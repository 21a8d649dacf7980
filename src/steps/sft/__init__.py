"""Steps that train on given answers."""
