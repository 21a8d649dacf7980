"""Which sources count for a run, and what is told of the checkout they lie in."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import ManifestError
from nemotron_style.runtime.run.code import describe_code, digest_code, find_module


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_only_python_sources_of_the_steps_package_count(mill: Any) -> None:
    before = digest_code("milling.recipe:run")
    mill.write("code/milling/notes.txt", "x")
    mill.write("code/other/recipe.py", "x = 1\n")
    assert digest_code("milling.recipe:run") == before
    mill.write("code/milling/config.py", "x = 1\n")
    assert digest_code("milling.recipe:run") != before


def test_renaming_a_source_changes_the_digest(mill: Any) -> None:
    mill.write("code/milling/a.py", "x = 1\n")
    before = digest_code("milling.recipe:run")
    (mill.root / "code/milling/a.py").rename(mill.root / "code/milling/b.py")
    assert digest_code("milling.recipe:run") != before


def test_a_lone_module_counts_alone(mill: Any) -> None:
    path = mill.write("code/lone.py", "def run(config, ctx): ...\n")
    assert find_module("lone:run") == path
    before = digest_code("lone:run")
    mill.write("code/beside.py", "")
    assert digest_code("lone:run") == before
    mill.write("code/lone.py", "def run(config, ctx): pass\n")
    assert digest_code("lone:run") != before


def test_a_package_may_be_the_entrypoint(mill: Any) -> None:
    assert find_module("milling:run").name == "__init__.py"


@pytest.mark.parametrize("entrypoint", ["nowhere.recipe:run", "milling.nowhere:run", "nowhere:x"])
def test_a_module_that_is_not_there_is_named(mill: Any, entrypoint: str) -> None:
    with pytest.raises(ManifestError, match=r"there is no module"):
        digest_code(entrypoint)


def test_the_commit_and_the_difference_to_it_are_told(mill: Any) -> None:
    entrypoint, folder = "milling.recipe:run", mill.root
    assert "commit" not in describe_code(entrypoint, "d")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "x")
    clean = describe_code(entrypoint, "d")
    assert clean["commit"] == git(folder, "rev-parse", "HEAD")
    assert "difference" not in clean
    mill.write("code/milling/config.py", "x = 2\n")
    dirty = describe_code(entrypoint, "d")
    assert dirty["commit"] == clean["commit"]
    assert len(dirty["difference"]) == 64


def test_no_git_is_no_obstacle(mill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    told = describe_code("milling.recipe:run", "d")
    assert set(told) == {"entrypoint", "digest", "version"}
