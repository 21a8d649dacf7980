"""What the author of a step imports: context, checkpoints, metrics."""
