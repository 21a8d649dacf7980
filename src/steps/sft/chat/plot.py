"""What is drawn over the steps of a run: losses, gradient norm, learning rate."""

from __future__ import annotations

PANELS = {
    "loss (nats a token)": {"train_loss": "train", "validation_loss": "validation"},
    "gradient norm": {"grad_norm": "before clipping"},
    "learning rate": {"lr": "learning rate"},
}
