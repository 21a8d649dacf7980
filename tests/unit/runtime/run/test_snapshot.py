"""The code of a handed-over job is kept as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import UsageError
from nemotron_style.runtime.run.code import digest_code
from nemotron_style.runtime.run.snapshot import list_sources, plan_snapshot, write_snapshot

ENTRYPOINT = "milling.recipe:run"


def test_a_plan_of_a_snapshot_writes_nothing_and_names_the_same_twice(mill: Any) -> None:
    before = mill.files()
    first = plan_snapshot(mill.home, ENTRYPOINT)
    assert first == plan_snapshot(mill.home, ENTRYPOINT)
    assert first.path == f"{mill.home}/code/{first.digest[:16]}"
    assert mill.files() == before


def test_a_snapshot_holds_this_package_and_the_one_of_the_step(mill: Any) -> None:
    names = [name for name, _ in list_sources(ENTRYPOINT)]
    assert "nemotron_style/runtime/worker/main.py" in names
    assert "nemotron_style/steps/blocks/loss/steerlm2.py" in names
    assert "milling/recipe.py" in names
    assert not [name for name in names if "__pycache__" in name]


def test_a_worker_runs_what_was_kept_after_the_sources_changed(mill: Any) -> None:
    snapshot = plan_snapshot(mill.home, ENTRYPOINT)
    digest = digest_code(ENTRYPOINT)
    write_snapshot(snapshot, ENTRYPOINT)
    mill.write("code/milling/recipe.py", "raise SystemExit('edited')\n")
    told = "from nemotron_style.runtime.run.code import digest_code; import milling.recipe as m; "
    told += (
        f"import nemotron_style as n; print(digest_code({ENTRYPOINT!r}), m.__file__, n.__file__)"
    )
    paths = os.pathsep.join([snapshot.path, os.environ["PYTHONPATH"]])
    shown = subprocess.run(
        [sys.executable, "-c", told],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert shown[0] == digest
    assert all(Path(name).is_relative_to(snapshot.path) for name in shown[1:])


def test_it_is_written_once_and_shared(mill: Any) -> None:
    snapshot = plan_snapshot(mill.home, ENTRYPOINT)
    write_snapshot(snapshot, ENTRYPOINT)
    kept = Path(snapshot.path, "milling/recipe.py").stat().st_ino
    write_snapshot(snapshot, ENTRYPOINT)
    assert Path(snapshot.path, "milling/recipe.py").stat().st_ino == kept
    assert [path.name for path in Path(snapshot.path).parent.iterdir()] == [snapshot.digest[:16]]


def test_sources_that_changed_since_the_plan_are_refused(mill: Any) -> None:
    snapshot = plan_snapshot(mill.home, ENTRYPOINT)
    mill.write("code/milling/more.py", "")
    with pytest.raises(UsageError, match=r"sources changed"):
        write_snapshot(snapshot, ENTRYPOINT)
    assert list(Path(snapshot.path).parent.iterdir()) == []


def test_a_copy_that_was_changed_is_not_used_again(mill: Any) -> None:
    snapshot = plan_snapshot(mill.home, ENTRYPOINT)
    write_snapshot(snapshot, ENTRYPOINT)
    copy = Path(snapshot.path, "milling/recipe.py")
    mill.write(f"{copy.parent}/__pycache__/recipe.pyc", "made by Python")
    write_snapshot(snapshot, ENTRYPOINT)
    text = copy.read_text()
    copy.write_text(text + "\nprint('more')\n")
    with pytest.raises(UsageError, match=r"this copy of the code was changed"):
        write_snapshot(snapshot, ENTRYPOINT)
    copy.write_text(text)
    (copy.parent / "extra.py").touch()
    with pytest.raises(UsageError, match=r"this copy of the code was changed"):
        write_snapshot(snapshot, ENTRYPOINT)
