"""What each family of models is called on Hugging Face's side, and which switches it has."""
