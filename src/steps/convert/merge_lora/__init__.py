"""An adapter added to the weights of its base."""
