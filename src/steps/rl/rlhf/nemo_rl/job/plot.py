"""What is drawn over the steps of a run of NeMo-RL."""

from __future__ import annotations

PANELS = {
    "reward": {"reward": "all samples", "validation/accuracy": "held-out prompts"},
    "sampler against trainer": {"token_mult_prob_error": "token_mult_prob_error"},
    "KL to the start (nats a token)": {"hacking/kl_to_start": "estimate"},
    "tokens of an answer": {
        "mean_gen_tokens_per_sample": "all samples",
        "validation/avg_length": "held-out prompts",
    },
    "judgements without a verdict": {"judge/failed_share": "share"},
}
