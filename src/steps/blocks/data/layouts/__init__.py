"""The layouts in which people have rows, each read as a row of our own kinds."""
