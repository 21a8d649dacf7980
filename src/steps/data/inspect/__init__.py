"""What a file of rows holds, before anything is trained on it."""
