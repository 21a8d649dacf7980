"""What artifacts were made from, as a graph, and the ways in which it is told."""
