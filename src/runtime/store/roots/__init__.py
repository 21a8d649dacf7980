"""Where a store lies, and the few operations that it needs there."""
