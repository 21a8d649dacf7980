"""Files of rows: what is read from them, and how a row is refused."""
