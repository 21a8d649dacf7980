"""The steps: one package a step, and the blocks they share."""
