"""The language model on megatron-core, and the processes that share it."""
