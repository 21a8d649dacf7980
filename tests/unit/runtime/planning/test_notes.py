"""What is said of a plan that can be carried out and does less than its config asks for."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_style.runtime.cli import main
from nemotron_style.runtime.planning.notes import note_unused
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import RunRequest

WIDE = 'launch = "torchrun"\n[run.resources]\nprocesses = "devices"\ngpus = "mill.speed"'


def notes_of(mill: Any, step: str, *overrides: str, **profile: Any) -> tuple[str, ...]:
    request = RunRequest(step, overrides=overrides)
    return compile_pipeline(request, context=mill.context(**profile)).target.plan.notes


def test_unused_keys_are_told_once_with_the_whole_list() -> None:
    assert list(note_unused(())) == []
    [note] = note_unused(("a.b", "c"))
    assert note.startswith("without effect: a.b, c (")


def test_unused_keys_that_were_set_are_told_before_a_run_and_change_nothing(
    mill: Any, capsys: Any
) -> None:
    config = mill.root / "code/milling/config.py"
    unused = "    tint: str = unused('grey')\n    veins: dict[str, int] = unused({})\n"
    text = config.read_text().replace("cosmetic\n", "cosmetic, unused\n", 1)
    config.write_text(text.replace("    devices:", f"{unused}    devices:", 1))
    plain = mill.compile("mill/grow", "tint=grey").target.plan
    plan = mill.compile("mill/grow", "tint=red", "+veins.blue=2", "pause=0.5").target.plan
    [note] = plan.notes
    assert plain.notes == ()
    assert plain.fingerprint == plan.fingerprint
    assert note.startswith("without effect: tint, veins (")
    assert main(["steps", "run", "mill/grow", "tint=red", "+veins.blue=2", "--dry-run"]) == 0
    assert capsys.readouterr().out.count(f"note      {note}\n") == 1
    assert main(["steps", "run", "mill/grow", "tint=red", "+veins.blue=2", "--json"]) == 0
    assert capsys.readouterr().err.count(f"note: {note}\n") == 1


@pytest.mark.parametrize(
    ("overrides", "profile", "told"),
    [
        (["mill.speed=8"], {}, "7 of 8 GPUs a machine stay idle: 1 process drives one;"),
        (["mill.speed=8", "devices=2"], {}, "6 of 8 GPUs a machine stay idle: 2 processes"),
        (["mill.speed=8"], {}, "set devices to 8, or mill.speed to 1"),
        (["mill.speed=8"], {"gpus_per_node": 4}, "3 of 4 GPUs"),
        (["mill.speed=8"], {"gpus_per_node": 1}, ""),
        (["mill.speed=8", "devices=8"], {}, ""),
        (["mill.speed=2", "devices=3"], {}, ""),
    ],
)
def test_gpus_without_a_process_are_told_with_both_ways_out(
    mill: Any, overrides: list[str], profile: dict[str, Any], told: str
) -> None:
    mill.add_step("mill/wide", makes="grain", run=WIDE)
    notes = [each for each in notes_of(mill, "mill/wide", *overrides, **profile) if "idle" in each]
    assert [told in each for each in notes] == [True] * bool(told)


def test_gpus_that_a_profile_offers_and_no_process_takes_are_told(mill: Any) -> None:
    run = 'launch = "torchrun"\n[run.resources]\nprocesses = "devices"'
    mill.add_step("mill/wide", makes="grain", run=run)
    [note] = notes_of(mill, "mill/wide", gpus_per_node=8)
    assert "7 of 8 GPUs" in note
    assert note.endswith("set devices to 8, or gpus_per_node of profile local to 1")
    mill.add_step("mill/lone", makes="grain", run="")
    assert notes_of(mill, "mill/lone", gpus_per_node=8) == ()  # it may well use all of them
