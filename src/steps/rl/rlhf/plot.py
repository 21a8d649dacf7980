"""What is drawn over the steps of a run: rewards, win rates, KL to the start, lengths."""

from __future__ import annotations

PANELS = {
    "reward": {"reward": "all samples", "validation/total_reward/mean": "held-out prompts"},
    "win rate against the start": {
        "validation/judge_win_rate": "judge",
        "validation/truth_win_rate": "truth",
    },
    "KL to the start (nats a token)": {"hacking/kl_to_start": "estimate"},
    "tokens of an answer": {
        "mean_gen_tokens_per_sample": "all samples",
        "validation/tokens": "held-out prompts",
    },
}
