"""A model that says what an answer is worth, from rated answers or from pairs of them."""
