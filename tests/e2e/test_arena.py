"""eval/arena end to end on a small toy, against a judge that says what is wanted of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest

import arena_judge
from nemotron_style.runtime.errors import InputError, Interrupted, StepFailed
from nemotron_style.runtime.step.context import StepContext, Stop
from nemotron_style.runtime.store.store import Store
from nemotron_style.steps.blocks.checkpoint.model_checkpoint import (
    load_model,
    save_model,
    weights_digest,
)
from nemotron_style.steps.blocks.data.toy_truth import load_truth
from nemotron_style.steps.eval.arena.config import Config
from nemotron_style.steps.eval.arena.recipe import run

FILES = ("arena.png", "results.json", "samples.jsonl", "samples.md")
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def worse(small_toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The toy's model with a head of less contrast: it answers, and less to the point."""
    path = tmp_path_factory.mktemp("worse") / "model"
    model, config = load_model(small_toy.model.path, ddp=False)
    model.output_layer.weight.data.mul_(0.7)
    save_model(model, path, config=config, tokenizer=small_toy.model.path / "tokenizer")
    return small_toy.store.adopt(str(path), kind="checkpoint_megatron", name="worse")


@pytest.fixture
def judge(small_toy: Any) -> Iterator[Any]:
    with arena_judge.JudgeServer(arena_judge.helpful(load_truth(small_toy.truth.path))) as server:
        yield server


@pytest.fixture
def inputs(small_toy: Any, worse: Any) -> dict[str, Any]:
    toy = small_toy
    return {"model": toy.model, "baseline": worse, "prompts": toy.prompts, "truth": toy.truth}


def make_config(url: str | None, **changes: Any) -> Config:
    """Settings for twelve prompts; of a section, ``changes`` name only what differs."""
    ready = 1 if url == NOBODY else 120
    waiting = {"ready_seconds": ready, "tries": 2, "timeout": 120, "first_pause": 0.0}
    values: dict[str, Any] = {
        "seed": 1,
        "trainer": {"precision": "32"},
        "data": {"max_prompts": 12},
        "sampling": {"max_new_tokens": 40, "num_samples": 3},
        "judge": {"url": url, "form": "genrm", "at_once": 2, "waiting": waiting},
        "shard_prompts": 5,
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    return Config.model_validate(values)


def make_run(path: Path, inputs: dict[str, Any], config: Config, **seating: Any) -> StepContext:
    ctx = StepContext(run_dir=path, inputs=inputs, outputs=("results",), **seating)
    run(config, ctx)
    return ctx


def read_results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    return json.loads((path / "results.json").read_text()), rows


def read_bytes(path: Path) -> list[bytes]:
    return [(path / name).read_bytes() for name in FILES]


def test_figures_are_those_of_the_samples_and_the_judge_is_the_truth(
    judge: Any, inputs: dict[str, Any], tmp_path: Path
) -> None:
    ctx = make_run(tmp_path, inputs, make_config(judge.url))
    path = ctx.output("results").path
    results, rows = read_results(path)
    truth = load_truth(inputs["truth"].path)
    assert len(rows) == results["pairs"] == 36
    assert results["prompts"] == 12
    for row in rows:
        levels = {
            slot: row[slot] and truth.score(row["messages"][-1]["content"], row[slot])
            for slot in ("model", "baseline")
        }
        assert row["helpfulness"] == {
            slot: level and level["helpfulness"] for slot, level in levels.items()
        }
        if row["decided"] == "judged":
            gap = row["helpfulness"]["model"] - row["helpfulness"]["baseline"]
            assert row["margins"] == [gap, gap]
    found = results["judge"]["win_rate"]
    assert found == results["truth"]["win_rate"]
    assert found["rate"] == pytest.approx(fmean(row["score"] for row in rows))
    assert 0.5 < found["low"] < found["rate"] < found["high"]
    assert results["judge"]["conclusion"] == ctx.figures["truth_conclusion"] == "better"
    assert results["judge"]["order_consistency"] == 1
    assert results["truth"]["judge_agreement"]["rate"] == 1
    judged = [row for row in rows if row["decided"] == "judged"]
    assert len(judge.bodies) == 2 * len(judged) > 20
    assert ctx.figures["win_rate"] == found["rate"]
    assert ctx.output("results").facts["model_digest"] == weights_digest(inputs["model"].path)
    assert (path / "arena.png").read_bytes().startswith(b"\x89PNG")
    assert "## Best wins" in (path / "samples.md").read_text()


def test_both_models_draw_from_the_same_random_streams(
    judge: Any, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """What is swapped comes back swapped: no answer depends on the slot that it is given in."""
    first = make_run(tmp_path / "a", inputs, make_config(judge.url))
    swapped = inputs | {"model": inputs["baseline"], "baseline": inputs["model"]}
    second = make_run(tmp_path / "b", swapped, make_config(judge.url))
    results, rows = read_results(first.output("results").path)
    others, mirrored = read_results(second.output("results").path)
    assert [(row["model"], row["baseline"]) for row in rows] == [
        (row["baseline"], row["model"]) for row in mirrored
    ]
    rates = [each["judge"]["win_rate"] for each in (results, others)]
    assert rates[0]["rate"] == pytest.approx(1 - rates[1]["rate"])
    assert others["judge"]["conclusion"] == "worse"


def test_a_judge_that_loves_length_is_seen_through(
    judge: Any, inputs: dict[str, Any], tmp_path: Path
) -> None:
    def longer(_: str, first: str, second: str) -> dict[str, float]:
        ranking = 3.5 + 2 * ((len(second) > len(first)) - (len(second) < len(first)))
        return {"score_1": 3, "score_2": 3, "ranking": ranking}

    judge.opinion = longer
    ctx = make_run(tmp_path, inputs, make_config(judge.url))
    results, _ = read_results(ctx.output("results").path)
    by_length = results["judge"]["by_length"]
    assert by_length["model_longer"]["rate"] == 1
    assert by_length["model_shorter"]["rate"] == 0
    assert results["truth"]["judge_agreement"]["rate"] < 0.9


@pytest.mark.parametrize(
    ("opinion", "told"),
    [
        ({"score_1": 3, "score_2": 3, "ranking": 3.5}, r"decides nothing; got \d+ ties, 0 times"),
        ({"score_1": 5, "score_2": 1, "ranking": 1}, r"decides nothing; got 0 ties, \d+ times"),
        ("They are both nice.", r"judgements failed and .* may.*unparseable"),
    ],
    ids=["always tied", "always the first", "malformed"],
)
def test_a_judge_without_an_opinion_ends_the_run(
    judge: Any, inputs: dict[str, Any], tmp_path: Path, opinion: Any, told: str
) -> None:
    judge.opinion = lambda *_: opinion
    with pytest.raises(StepFailed, match=told):
        make_run(tmp_path, inputs, make_config(judge.url))


def test_a_failure_within_the_budget_is_counted_and_never_scored(
    judge: Any, inputs: dict[str, Any], tmp_path: Path
) -> None:
    right, lost = judge.opinion, []

    def moody(prompt: str, first: str, second: str) -> Any:
        if not lost or (prompt, first, second) in lost:
            lost.append((prompt, first, second))
            return "I would rather not say."
        return right(prompt, first, second)

    judge.opinion = moody
    ctx = make_run(tmp_path, inputs, make_config(judge.url, judge={"failure_budget": 0.1}))
    results, rows = read_results(ctx.output("results").path)
    failed = [row for row in rows if row["decided"] == "failed"]
    assert failed
    assert all(row["score"] is None and row["margins"] == [] for row in failed)
    assert results["judge"]["failures"]["kinds"] == {"unparseable": len(failed)}
    assert results["judge"]["win_rate"]["pairs"] == len(rows) - len(failed)
    assert results["truth"]["win_rate"]["pairs"] == len(rows)


def test_bad_input_is_refused_before_anything_is_drawn(
    judge: Any, inputs: dict[str, Any], tmp_path: Path
) -> None:
    def refuse(match: str, config: Config, error: Any = InputError, **changes: Any) -> None:
        with pytest.raises(error, match=match):
            make_run(tmp_path, inputs | changes, config)
        assert not list(tmp_path.glob("checkpoints/*"))

    good = make_config(judge.url)
    refuse("both have the same weights", good, baseline=inputs["model"])
    refuse("judge.url: there is no judge", make_config(None))
    refuse("not ready within 1 s.*unreachable", make_config(NOBODY), StepFailed)
    refuse(
        "leaves baseline no room.*got 31 tokens; allowed: 6",
        make_config(judge.url, sampling={"max_new_tokens": 90}),
    )
    judge.digest = inputs["baseline"].digest
    refuse("the judge is the baseline itself", good)
    judge.digest = None
    card = SimpleNamespace(
        digest="sha256:x",
        facts={"judge_card": {"weights_digest": weights_digest(inputs["model"].path)}},
    )
    refuse("the judge is the model itself", good, **{"judge.model": card})
    assert judge.bodies == []


def test_the_judges_card_says_how_it_is_asked(
    judge: Any, inputs: dict[str, Any], tmp_path: Path
) -> None:
    figures = {"form": "genrm", "accuracy": 0.9}
    card = SimpleNamespace(digest="sha256:x", facts={"judge_card": figures})
    unsaid = make_config(judge.url, judge={"form": None})
    ctx = make_run(tmp_path, inputs | {"judge.model": card}, unsaid)
    assert judge.bodies[0]["messages"][-1]["role"] == "response_2"
    facts = ctx.output("results").facts
    assert (facts["judge_form"], facts["judge_card"]) == ("genrm", figures)
    assert facts["judge_digest"] == "sha256:x"


def test_a_run_that_was_stopped_goes_on_with_what_it_has(
    judge: Any, inputs: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config(judge.url)
    whole = make_run(tmp_path / "whole", inputs, config)
    asked = len(judge.bodies)

    stop = Stop()
    judge.after = lambda count: setattr(stop, "requested", count >= asked + 10)
    with pytest.raises(Interrupted, match="stopped while judging"):
        make_run(tmp_path / "cut", inputs, config, stop=stop)
    judge.after = lambda count: None
    again = make_run(tmp_path / "cut", inputs, config, attempt=2)
    paths = [ctx.output("results").path for ctx in (whole, again)]
    assert read_bytes(paths[0]) == read_bytes(paths[1])
    assert len(judge.bodies) == 2 * asked  # nothing was asked twice
    assert again.metrics.history()[-1]["judgements"] == asked


def command(store: Path, url: str) -> subprocess.Popen[str]:
    words = [
        *("steps", "run", "eval/arena", "-c", "tiny", "--json"),
        *("-i", "model=model", "-i", "baseline=worse"),
        *("-i", "prompts=prompts", "-i", "truth=truth"),
        *(f"judge.url={url}", "judge.form=genrm", "judge.at_once=1"),
        *("data.max_prompts=12", "sampling.num_samples=1", "sampling.max_new_tokens=40"),
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "nemotron_style.runtime", *words],
        env=os.environ | {"NEMOTRON_STYLE_HOME": str(store), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_from_the_command_line_with_a_kill(judge: Any, small_toy: Any, worse: Any) -> None:
    """kill -9 while the judge is asked: the same command gives what an untouched run gives."""
    home = small_toy.store.root
    killed = threading.Event()

    def kill(count: int) -> None:
        if count == 6 and not killed.is_set():
            killed.set()
            (owner,) = home.glob("runs/eval-arena-*/attempts/1/owner.json")
            os.kill(json.loads(owner.read_text())["pid"], signal.SIGKILL)

    judge.after = kill
    output, told = command(home, judge.url).communicate(timeout=300)
    assert killed.is_set(), (output, told)
    first = command(home, judge.url)
    output, told = first.communicate(timeout=300)
    assert first.returncode == 0, told
    assert json.loads(output)["runs"][-1]["step"] == "eval/arena"
    (made,) = [one for one in Store(home).artifacts() if one.kind == "eval_results"]
    results, rows = read_results(made.path)
    asked = 2 * results["judge"]["decided"]["judged"]
    # The sixth was being answered when the run was killed; it alone is asked again.
    assert len(judge.bodies) == asked + 1
    assert len(rows) == 12
    assert set(results) == {"prompts", "pairs", "lengths", "unfinished", "judge", "truth"}
    assert made.record.metrics["win_rate"] == results["judge"]["win_rate"]["rate"]

    (run_dir,) = home.glob("runs/eval-arena-*")
    inputs = {"model": small_toy.model, "baseline": worse}
    inputs |= {"prompts": small_toy.prompts, "truth": small_toy.truth}
    config = Config.model_validate(json.loads((run_dir / "plan.json").read_text())["config"])
    untouched = make_run(run_dir.parent / "untouched", inputs, config)
    assert read_bytes(untouched.output("results").path) == read_bytes(made.path)
