"""The planner: every order once, however many steps need it; what was rendered is submitted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.launch.local import LocalLauncher
from nemotron_style.runtime.planning import inputs, planner

BOTH = """
[[consumes]]
name = "seed"
type = "flour"
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often orders were planned, configs read, jobs rendered and paths hashed."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        called = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return called(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(planner, "draft_plan")
    count(planner, "resolve_config")
    count(inputs, "digest_tree")
    count(LocalLauncher, "compile")
    return counts


def add_ladder(mill: Any, rungs: int) -> str:
    """Steps that each take the one before twice: planned for every edge, 2 ** rungs orders."""
    before = "mill/grind"
    for number in range(rungs):
        step, source = f"mill/rung{number}", f"{{step: {before}, slot: sack}}"
        config = f"inputs:\n  input: {source}\n  seed: {source}\n"
        mill.add_step(step, takes="flour", makes="flour", configs={"default": config}, run=BOTH)
        before = step
    return before


def test_every_order_is_planned_once_however_many_steps_need_it(mill: Any, calls: Any) -> None:
    last = add_ladder(mill, 6)
    pipeline = mill.compile(last)
    assert len(pipeline.runs) == 8
    assert calls["draft_plan"] == 8
    assert calls["resolve_config"] == 8


def test_a_conversion_of_the_same_content_is_planned_once(mill: Any, calls: Any) -> None:
    path = mill.write("elsewhere/grain/sack.txt", "grain").parent
    mill.store.adopt(path, kind="grain", name="grain")
    mill.add_step("mill/pair", takes="flour", makes="bread", run=BOTH)
    pipeline = mill.compile("mill/pair", inputs=("input=grain", "seed=grain"))
    assert [run.plan.step for run in pipeline.runs] == ["mill/grind", "mill/pair"]
    assert calls["draft_plan"] == 2


def test_a_path_that_fills_two_slots_is_hashed_once(mill: Any, calls: Any) -> None:
    path = mill.write("elsewhere/flour/sack.txt", "flour").parent
    mill.add_step("mill/pair", takes="flour", makes="bread", run=BOTH)
    mill.compile("mill/pair", inputs=(f"input={path}", f"seed={path}"))
    assert calls["digest_tree"] == 1


def test_what_is_rendered_and_checked_is_what_is_submitted(mill: Any, calls: Any) -> None:
    assert main(["steps", "run", "mill/bake"]) == 0
    assert calls["compile"] == 3
    assert main(["steps", "run", "mill/bake", "--fresh", "--dry-run", "--json"]) == 0
    assert calls["compile"] == 6


def test_the_shipped_chain_of_six_runs_is_six_orders(
    calls: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMOTRON_STYLE_HOME", str(tmp_path / "store"))
    assert main(["steps", "run", "sft/steerlm2", "-c", "tiny_iter2", "--dry-run"]) == 0
    assert calls["draft_plan"] == calls["resolve_config"] == calls["compile"] == 6
