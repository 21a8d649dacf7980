"""What is drawn over the steps of a run: rewards, KL to the start, lengths."""

from __future__ import annotations

PANELS = {
    "reward": {
        "reward_mean": "all samples",
        "reward_kept_mean": "kept",
        "validation_reward_mean": "held-out prompts",
    },
    "KL to the start (nats a response)": {
        "kl_to_start": "estimate",
        "bound_kl": "bound of one choice",
    },
    "tokens of a response": {"response_tokens_mean": "all samples", "kept_tokens_mean": "kept"},
}
