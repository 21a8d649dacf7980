"""Several artifacts or runs side by side: figures, curves, answers, and what differs."""
