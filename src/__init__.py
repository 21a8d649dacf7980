"""Step-based alignment pipelines for language models, with artifact lineage."""

__version__ = "0.1.0"
