"""Where a project is looked for, and where no more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_style.runtime.paths import find_project_root, list_folders_above


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``shared/home/project/deep``; the home is the user's."""
    deep = tmp_path / "shared" / "home" / "project" / "deep"
    deep.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "shared" / "home"))
    return tmp_path / "shared"


def test_a_project_is_not_looked_for_above_the_home(tree: Path) -> None:
    (tree / "pyproject.toml").touch()
    project = tree / "home" / "project"
    assert find_project_root(project / "deep") == project / "deep"
    assert list_folders_above(project) == [project, tree / "home"]
    (tree / "home" / ".git").mkdir()
    assert find_project_root(project / "deep") == tree / "home"
    assert find_project_root(tree) == tree, "whoever stands there means it"


def test_outside_of_the_home_it_is_looked_for_up_to_the_top(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    (tree / "pyproject.toml").touch()
    assert find_project_root(tree / "home" / "project") == tree
    monkeypatch.setenv("HOME", "/")
    assert find_project_root(tree / "home" / "project") == tree


@pytest.mark.parametrize("marker", [".git", ".nemotron-style", "env.toml"])
def test_what_others_put_into_a_folder_of_everybody_is_no_project(
    tree: Path, monkeypatch: pytest.MonkeyPatch, marker: str
) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    (tree / marker).mkdir()
    tree.chmod(0o1777)
    deep = tree / "home" / "project"
    assert find_project_root(deep) == tree, "the user's own"
    uid = os.getuid()
    monkeypatch.setattr("nemotron_style.runtime.paths.ROOT", -1)
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert find_project_root(deep) == deep
    tree.chmod(0o755)
    assert find_project_root(deep) == tree, "a colleague's project is one"
