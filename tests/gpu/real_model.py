"""A stock instruct model through the steps on the device at hand, in its own chat template.

    python tests/gpu/real_model.py MODEL ROWS.jsonl [--json FILE] [--in-small]

``MODEL`` is a Hugging Face folder and ``ROWS`` has ``prompt`` and ``response`` on each line. The
model is converted, fine-tuned (whole and with adapters), a reward model learns from a rule to like
short answers, ``rs/actor`` trains for it, and the result goes back to Hugging Face, where
transformers computes the logits again. ``--in-small`` makes a few updates in float32, for a CPU.
Every command's seconds and last words are printed; the exit code is 1 where one fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import run_steps

CONFIGS = Path(__file__).parents[2] / "docs" / "examples" / "real-models"
TRAINING = ("sft/", "reward/", "rs/")


def conversation(prompt: str, response: str | None) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": prompt}]
    return asked if response is None else [*asked, {"role": "assistant", "content": response}]


def rated(row: dict[str, str]) -> list[dict[str, Any]]:
    """Beginnings of the answer, each rated by its length alone: forty words are a grade."""
    words = row["response"].split(" ")
    return [
        {
            "messages": conversation(row["prompt"], " ".join(words[:count])),
            "attributes": {"verbosity": min(4, count // 40)},
        }
        for count in (20, 60, 100, 140, 180)
        if count <= len(words)
    ]


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    """train, held_out: conversations; rated, rated_held_out; prompts, prompts_held_out."""
    usable = [row for row in rows if 20 <= len(row["response"].split()) <= 800]
    parts = {"": usable[32:], "_held_out": usable[:32]}
    for name, part in parts.items():
        for stem, lines in {
            "chats": [{"messages": conversation(r["prompt"], r["response"])} for r in part],
            "rated": [line for row in part for line in rated(row)],
            "prompts": [{"messages": conversation(row["prompt"], None)} for row in part],
        }.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{stem}{name}.jsonl").write_text(text, encoding="utf-8")


def commands(model: Path, rows: Path, *, small: bool) -> list[list[str]]:
    precision = "32" if small else "bf16"
    steps, batch, length = (2, 4, 512) if small else (100, 32, 2048)

    def train(step: str, config: str, key: str, name: str, count: int, *more: str) -> list[str]:
        every = max(1, count // 4)
        return [
            step, "-c", str(CONFIGS / f"{config}.yaml"), "--name", name, "-i", "model=base",
            f"trainer.precision={precision}", f"trainer.{key}.max_steps={count}",
            f"trainer.{key}.val_check_interval={every}", "model.optim.sched.warmup_steps=1",
            "model.data.long_rows=skip", *more,
        ]  # fmt: skip

    chat = (
        f"model.data.train_ds.global_batch_size={batch}",
        f"model.data.train_ds.micro_batch_size={min(8, batch)}",
        f"model.data.train_ds.max_seq_length={length}",
        *(
            "-i",
            f"data={rows / 'chats.jsonl'}",
            "-i",
            f"validation={rows / 'chats_held_out.jsonl'}",
        ),
    )
    prompts, rollouts = (4, 2) if small else (32, 8)
    return [
        ["convert/hf_to_megatron", "-i", f"model={model}", "--name", "base"],
        train("sft/chat", "sft", "sft", "tuned", steps, *chat),
        train(
            *("sft/chat", "sft", "sft", "adapter", steps, *chat),
            *(
                "model.peft.peft_scheme=lora",
                "model.optim.lr=2e-4",
                "model.optim.sched.min_lr=2e-5",
            ),
        ),
        train(
            *("reward/regression", "reward", "rm", "reward", steps, "model.optim.lr=5e-5"),
            *(f"model.global_batch_size={batch}", f"model.micro_batch_size={min(16, batch)}"),
            *("model.data.seq_length=1024", "model.regression.attribute_weights=[-1]"),
            *("-i", f"data={rows / 'rated.jsonl'}"),
            *("-i", f"validation={rows / 'rated_held_out.jsonl'}"),
        ),
        train(
            *("rs/actor", "rs", "rs", "short", 2 if small else 16, "model.optim.lr=2e-5"),
            *(f"model.global_batch_size={prompts}", f"model.micro_batch_size={min(16, prompts)}"),
            f"model.rs.num_rollout_samples={prompts}",
            f"model.rs.num_rollouts_per_prompt={rollouts}",
            f"model.rs.rollout_micro_batch_size={prompts}",
            f"model.rs.length_params.max_length={32 if small else 384}",
            f"model.encoder_seq_length={1024 if small else 2048}",
            *("-i", f"prompts={rows / 'prompts.jsonl'}", "-i", "reward.model=reward"),
            *("-i", f"validation={rows / 'prompts_held_out.jsonl'}"),
        ),
        ["convert/megatron_to_hf", "-i", "model=short", "--name", "short-hf"],
    ]


def newest_metrics(store: Path) -> list[dict[str, Any]]:
    """What the last run measured: its first and last update, and every validation."""
    files = sorted(store.glob("runs/*/metrics.jsonl"), key=lambda file: file.stat().st_mtime)
    lines = [json.loads(line) for line in files[-1].read_text().splitlines()]
    updates = [line for line in lines if "grad_norm" in line]
    return updates[:1] + updates[-1:] + [line for line in lines if "grad_norm" not in line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--in-small", action="store_true")
    words = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        lines = words.rows.read_text(encoding="utf-8").splitlines()
        write_rows(folder, [json.loads(line) for line in lines])
        for command in commands(words.model.resolve(), folder, small=words.in_small):
            name = f"{command[0]} {command[command.index('--name') + 1]}"
            try:
                [figures[name]] = run_steps(command, store=folder / "store").values()
                if command[0].startswith(TRAINING):
                    figures[name]["metrics"] = newest_metrics(folder / "store")
            except AssertionError as error:  # what it said; the steps that need it are not tried
                print(error, flush=True)
                return 1
            print(name, json.dumps(figures[name], indent=1), flush=True)
            if words.json:
                words.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
