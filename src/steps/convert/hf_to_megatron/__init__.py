"""A Hugging Face checkpoint as the training steps read it."""
