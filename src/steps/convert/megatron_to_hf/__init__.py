"""A checkpoint as Hugging Face tools read it."""
