"""A stand-in for NeMo-RL's script: it reads its config, trains nothing, writes what that writes.

It is copied into a tree as ``examples/nemo_gym/run_grpo_nemo_gym.py`` and started as the real one.
``STAND_IN`` (JSON in the environment) asks for more: ``version``; ``crash_at``, ``stall_at`` and
``die_in_save`` name a step; ``time_out_at`` one after which the time is up; ``judge_fails`` how
many comparisons of a step; ``rewards`` the validation rewards by step; ``ray`` how many worker
units a Ray cluster must offer; ``never_ends`` whether it hangs at its end; ``stop_at`` a step after
which it ends well and early; ``lose_shards_of`` one whose save is not whole.  Once it hangs, there
is a file ``hangs`` beside its logs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import struct
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from nemotron_style.steps.rl.rlhf.nemo_rl.job.event_file import checksum
from nemotron_style.steps.rl.rlhf.nemo_rl.job.settings import register_resolvers

ASKED: dict[str, Any] = json.loads(os.environ.get("STAND_IN", "{}"))
VERSION = ASKED.get("version", "v0.6.0")
REQUIRED = {
    "grpo": "num_prompts_per_step num_generations_per_prompt max_num_epochs max_num_steps"
    " val_period val_at_start val_at_end max_val_samples seed",
    "checkpointing": "enabled checkpoint_dir metric_name higher_is_better keep_top_k save_period",
    "data": "train",
    "policy": "model_name",
    "logger": "log_dir tensorboard_enabled",
    "cluster": "gpus_per_node num_nodes",
}


def load(path: str) -> dict[str, Any]:
    register_resolvers()
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    for section, keys in REQUIRED.items():
        for key in keys.split():
            config[section][key]
    return config


class Board:
    """A SummaryWriter that writes every event at once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns()}.stand-in.{os.getpid()}.0"

    def add(self, step: int, prefix: str, values: dict[str, float]) -> None:
        with self.path.open("ab") as file:
            for name, value in values.items():
                tag = f"{prefix}/{name}".encode()
                scalar = b"\x0a" + bytes([len(tag)]) + tag + b"\x15" + struct.pack("<f", value)
                summary = b"\x0a" + bytes([len(scalar)]) + scalar
                event = b"\x10" + bytes([step]) + b"\x2a" + bytes([len(summary)]) + summary
                length = struct.pack("<Q", len(event))
                file.write(length + checksum(length) + event + checksum(event))


def join_ray(units: int) -> None:
    """Take every worker unit by a placement group, as NeMo-RL takes its GPUs."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ray.init(address="auto")
    group = placement_group([{"worker_units": 1}] * units, strategy="SPREAD")
    assert group.wait(60), f"ResourceInsufficientError: {ray.cluster_resources()}"

    @ray.remote(num_cpus=0, resources={"worker_units": 1})
    def where() -> str:
        return str(ray.get_runtime_context().get_node_id())

    places = [PlacementGroupSchedulingStrategy(group, index) for index in range(units)]
    nodes = ray.get([where.options(scheduling_strategy=place).remote() for place in places])
    print(f"ray: {len(set(nodes))} nodes took part")


def save(config: dict[str, Any], step: int, info: dict[str, Any]) -> None:
    root = Path(config["checkpointing"]["checkpoint_dir"])
    temporary, final = root / f"tmp_step_{step}", root / f"step_{step}"
    iteration = temporary / "policy/weights/iter_0000000"
    if VERSION in ("head", "v0.8.0"):
        shutil.rmtree(temporary, ignore_errors=True)
    iteration.mkdir(parents=True, exist_ok=True)
    (temporary / "training_info.json").write_text(json.dumps(info))
    if ASKED.get("die_in_save") == step:
        os.kill(os.getpid(), 9)
    (temporary / "config.yaml").write_text(yaml.safe_dump(config))
    names = ["run_config.yaml", "metadata.json", ".metadata", "train_state.pt"]
    if ASKED.get("lose_shards_of") != step:
        names += ["__0_0.distcp", "__0_1.distcp"]
    for name in names:
        (iteration / name).write_text(f"{name} of step {step}")
    (iteration.parent / "latest_train_state.pt").write_text("0")
    (iteration.parent / "latest_checkpointed_iteration.txt").write_text("0")
    (temporary / "train_dataloader.pt").write_text(f"after step {step}")
    old = root / f"old_step_{step}"
    if final.exists():
        os.rename(final, old)
    os.rename(temporary, final)
    shutil.rmtree(old, ignore_errors=True)
    if VERSION in ("head", "v0.8.0"):
        status = {"last_successful_ckpt_save_completion": time.time(), "last_checkpoint_step": step}
        (root / "latest_checkpoint_status.json").write_text(json.dumps(status))
    prune(config["checkpointing"], root)


def steps_in(root: Path) -> list[Path]:
    found = [path for path in root.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("_")[1]))


def prune(settings: dict[str, Any], root: Path) -> None:
    def rank(path: Path) -> tuple[float, int]:
        info = json.loads((path / "training_info.json").read_text())
        value = info.get(settings["metric_name"], -float("inf"))
        return (value if settings["higher_is_better"] else -value), int(path.name.split("_")[1])

    every = steps_in(root)
    for path in sorted(every, key=rank, reverse=True)[settings["keep_top_k"] or len(every) :]:
        if path != every[-1]:
            shutil.rmtree(path)


def resume(root: Path) -> int:
    """The steps that were made; the newest step_N is taken without a look at it, as in NeMo-RL."""
    if not (found := steps_in(root)):
        return 0
    print(f"Loading checkpoint {found[-1].name}")
    (found[-1] / "train_dataloader.pt").read_text()
    info = json.loads((found[-1] / "training_info.json").read_text())
    assert (found[-1] / "policy/weights/iter_0000000/run_config.yaml").stat().st_size
    return int(info["total_steps"])


def read_rows(path: str, *, gym: bool) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if not gym:
            assert row["input"], row["output"]
            continue
        assert row["agent_ref"]["name"], row["responses_create_params"]["input"][0]["content"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    config = load(parser.parse_args().config)
    print(f"Loaded configuration from: {sys.argv[-1]}")
    grpo, logger, checkpointing = config["grpo"], config["logger"], config["checkpointing"]
    number = 1 + len(list(Path(logger["log_dir"]).glob("exp_*")))
    board = Board(Path(logger["log_dir"], f"exp_{number:03d}", "tensorboard"))
    rows = read_rows(config["data"]["train"]["data_path"], gym=config["env"]["should_use_nemo_gym"])
    if ASKED.get("ray"):
        join_ray(ASKED["ray"])
    print("\n▶ Setting up model and training...", flush=True)
    per_epoch = len(rows) // grpo["num_prompts_per_step"]
    steps = min(grpo["max_num_steps"], grpo["max_num_epochs"] * per_epoch)
    for step in range(resume(Path(checkpointing["checkpoint_dir"])) + 1, steps + 1):
        print(f"\n{'=' * 25} Step {(step - 1) % per_epoch + 1}/{per_epoch} {'=' * 25}")
        train_step(config, board, step, is_last=step == steps)
    while ASKED.get("never_ends"):
        hang(config)


def hang(config: dict[str, Any]) -> None:
    Path(config["logger"]["log_dir"], "hangs").touch()
    time.sleep(0.02)


def train_step(config: dict[str, Any], board: Board, step: int, *, is_last: bool) -> None:
    grpo, checkpointing = config["grpo"], config["checkpointing"]
    print("▶ Preparing batch...", flush=True)
    print("(VllmWorker pid=7) Engine 000: Avg generation throughput: 0.0 tokens/s")
    for pair in range(ASKED.get("judge_fails", 0)):
        print(f"(NemoGym pid=9) [GenRM] Parse failed for pair (0, {pair}) after 4 attempts; ...")
    if ASKED.get("crash_at") == step:
        raise ValueError(f"the loss of step {step} is not a number")
    while step == ASKED.get("stall_at"):
        hang(config)
        print("(VllmWorker pid=7) Engine 000: Running: 0 reqs, Waiting: 3 reqs", flush=True)
    metrics = {
        "loss": 1 / step,
        "reward": 2 + step / 4,
        "token_mult_prob_error": 1.01,
        "kl_penalty": 0.02 * step,
        "mean_gen_tokens_per_sample": 10.0 * step,
    }
    info: dict[str, Any] = {"current_step": step, "total_steps": step, "current_epoch": 0}
    rewards = ASKED.get("rewards", {})
    if grpo["val_period"] and (step % grpo["val_period"] == 0) and str(step) in rewards:
        print(f"▶ Starting validation at step {step}...", flush=True)
        value = float(rewards[str(step)])
        board.add(step, "validation", {"accuracy": value, "avg_length": 11.0})
        info |= {"val_reward": value, "val:total_reward/mean": value, "val:accuracy": value}
    is_last = is_last or step in (ASKED.get("time_out_at"), ASKED.get("stop_at"))
    if checkpointing["enabled"] and (is_last or step % checkpointing["save_period"] == 0):
        print(f"Saving checkpoint for step {step}...", flush=True)
        save(config, step, info)
    print("\n📊 Training Results:")
    print(f"  • Loss: {metrics['loss']:.4f}")
    print(f"  • Avg Reward: {metrics['reward']:.4f}")
    print(f"  • Mean Generation Length: {10.0 * step:.4f}", flush=True)
    board.add(step, "train", metrics)
    board.add(step, "timing/train", {"total_step_time": 0.1})
    board.add(step, "ray", {"node.0.gpu.0.util": 50.0})
    if ASKED.get("time_out_at") == step:
        print("Timeout has been reached, stopping training early", flush=True)
        sys.exit(0)
    if ASKED.get("stop_at") == step:
        sys.exit(0)


if __name__ == "__main__":
    main()
