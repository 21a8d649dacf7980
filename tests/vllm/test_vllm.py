"""The real vLLM, in an environment of its own, beside the engine in the training process.

The interpreter is ``$NEMOTRON_STYLE_VLLM_PYTHON``, else the one of ``.venv-vllm``, which
``make .venv-vllm/.ready`` makes. One start of vLLM answers everything that is asked here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.steps.blocks.settings.generation_config import sampler_limit

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("vllm_python")]
STOPS = range(12)
ROUNDING = sampler_limit("in_process", half=False)


@pytest.fixture(scope="module")
def told(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw; it ends by killing itself."""
    folder = tmp_path_factory.mktemp("vllm")
    paths = os.pathsep.join(str(ROOT / name) for name in ("typings", "tests/shared"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [vllm_python, HERE / "driver.py", folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return json.loads((folder / "told.json").read_text())


def tokens(drawn: list[list[dict[str, Any]]]) -> list[list[list[int]]]:
    return [[sample["tokens"] for sample in group] for group in drawn]


def flat(drawn: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [sample for group in drawn for sample in group]


@pytest.mark.parametrize("when", ["greedy", "updated"])
def test_greedy_is_the_engine_in_process_over_64_tokens(told: dict[str, Any], when: str) -> None:
    ours, theirs = told["in_process"][when], told["vllm"][when]
    assert tokens(ours) == tokens(theirs)
    assert [len(sample["tokens"]) for sample in flat(theirs)] == [64] * 4
    assert len({token for sample in flat(theirs) for token in sample["tokens"]}) > 10
    for one, other in zip(flat(ours), flat(theirs), strict=True):
        assert one["log_probs"] == pytest.approx(other["log_probs"], abs=1e-4)
        assert one["finish"] == other["finish"] == "length"


def test_an_update_and_nothing_else_changes_what_is_drawn(told: dict[str, Any]) -> None:
    assert told["before_update"] == told["vllm"]["greedy"]
    assert tokens(told["vllm"]["updated"]) != tokens(told["vllm"]["greedy"])


def test_log_probs_are_those_of_training(told: dict[str, Any]) -> None:
    for engine in ("in_process", "vllm"):
        for temperature in ("1.0", "0.7"):
            gap = told[engine][temperature]["gap"]
            print(f"{engine}, temperature {temperature}: {gap}")
            assert gap["tokens"] > 300
            assert gap["token_mult_prob_error"] < ROUNDING  # float32 on both sides
    assert told["updated"]["gap"]["token_mult_prob_error"] < ROUNDING


def test_log_probs_are_of_the_filtered_distribution(told: dict[str, Any]) -> None:
    gap = told["filtered"]["gap"]
    assert gap["token_mult_prob_error"] < ROUNDING
    assert gap["max_log_prob_difference"] < 1e-3
    lengths = [len(sample["tokens"]) for sample in flat(told["filtered"]["drawn"])]
    assert min(lengths) >= 5  # four tokens, and then a stop token


def test_a_sample_ends_with_its_first_stop_token_or_is_unfinished(told: dict[str, Any]) -> None:
    samples = flat(told["vllm"]["1.0"]["drawn"])
    assert {sample["finish"] for sample in samples} == {"stop", "length"}
    for sample in samples:
        stops = [token in STOPS for token in sample["tokens"]]
        assert sum(stops) == int(sample["finish"] == "stop")
        assert stops[-1] == (sample["finish"] == "stop")
        assert len(sample["tokens"]) == 48 or sample["finish"] == "stop"


def test_an_end_string_ends_a_response_where_it_does_in_process(told: dict[str, Any]) -> None:
    ours, theirs = told["in_process"]["until"], told["vllm"]["until"]
    assert tokens(ours) == tokens(theirs)
    ends = [sample["finish"] for sample in flat(theirs)]
    assert ends == [sample["finish"] for sample in flat(ours)]
    assert "stop" in ends


def test_a_seed_gives_its_samples_whatever_is_drawn_beside_them(told: dict[str, Any]) -> None:
    assert tokens(told["alone"])[0] == tokens(told["together"])[2][:2]
    assert len({str(one) for group in tokens(told["together"]) for one in group}) == 16


def test_rlhf_hands_its_weights_over_after_every_step(told: dict[str, Any]) -> None:
    """The recipe's own gate and loop; a run that was stopped ends as one that was not."""
    rlhf = told["rlhf"]
    assert rlhf["updates"] == [4, 3, 2]  # at the start, and after each step
    whole, parted = rlhf["steps"]
    assert [line["step"] for line in whole] == [1, 2, 3]
    assert whole[0]["gate/token_mult_prob_error"] < ROUNDING
    for line in whole:  # vLLM drew from the very weights that the step trains
        assert line["token_mult_prob_error"] < ROUNDING
    assert [line["reward"] for line in parted] == [line["reward"] for line in whole]
    assert rlhf["digests"][0] == rlhf["digests"][1] != rlhf["start"]


def test_a_killed_engine_is_one_clear_error_at_once(told: dict[str, Any]) -> None:
    assert "the process of vLLM ended (signal 9) when it was to generate" in told["killed"]["error"]
    assert told["killed"]["seconds"] < 60
    assert not told["left"]


def test_a_killed_trainer_leaves_no_engine_behind(told: dict[str, Any]) -> None:
    pid, folder = told["orphan"]["pid"], Path(told["orphan"]["folder"])
    deadline = time.monotonic() + 120
    while (Path(f"/proc/{pid}").exists() or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()
