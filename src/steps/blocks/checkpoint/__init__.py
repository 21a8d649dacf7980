"""Models on disk: torch_dist, safetensors, Hugging Face."""
