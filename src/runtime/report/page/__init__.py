"""A page of one file: how it is rendered, what it embeds, its seals, and how it is checked."""
