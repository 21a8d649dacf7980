"""How often a generative judge is right, as a card that goes with it."""
