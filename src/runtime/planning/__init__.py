"""From a request to sealed plans, upstream first, and what is done with them."""
