"""Which ``env.toml`` is read, and which is not believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_style.runtime.errors import ProfileError
from nemotron_style.runtime.profiles.files import read_profiles

MINE = '[mine]\nexecutor = "local"\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``above/home/repository/package``, each of the last two with a marker of a project."""
    package = tmp_path / "above" / "home" / "repository" / "package"
    package.mkdir(parents=True)
    (package / "pyproject.toml").touch()
    (package.parent / ".git").mkdir()
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    monkeypatch.chdir(package)
    return package


@pytest.mark.parametrize(("levels", "is_read"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_file_above_the_project_and_its_repository_is_not_read(
    project: Path, levels: int, is_read: bool
) -> None:
    folder = project if levels == 0 else project.parents[levels - 1]
    (folder / "env.toml").write_text(MINE)
    assert ("mine" in read_profiles()) is is_read


def test_without_a_repository_only_the_project_counts(project: Path) -> None:
    (project.parent / ".git").rmdir()
    (project.parent / "env.toml").write_text(MINE)
    assert "mine" not in read_profiles()


def test_a_file_in_the_users_home_is_for_all_projects_there(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = project.parents[1]
    monkeypatch.setenv("HOME", str(home))
    (home.parent / "env.toml").write_text('[others]\nexecutor = "local"\n')
    assert "others" not in read_profiles()
    (home / "env.toml").write_text(MINE)
    assert "mine" in read_profiles()


@pytest.mark.parametrize("mode", [0o666, 0o646, 0o602])
def test_a_file_that_others_may_write_is_refused_with_the_fix(project: Path, mode: int) -> None:
    path = project / "env.toml"
    path.write_text(MINE)
    path.chmod(mode)
    with pytest.raises(ProfileError) as caught:
        read_profiles()
    (problem,) = caught.value.problems
    assert "can be written by other users" in problem.what
    assert problem.got == f"mode {mode:03o}"
    assert problem.fix.startswith(f"chmod go-w {path}")


def test_a_group_is_others_unless_it_is_the_users_own(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "env.toml"
    path.write_text(MINE)
    path.chmod(0o664)
    assert "mine" in read_profiles()
    own = path.stat().st_gid
    monkeypatch.setattr(os, "getgid", lambda: own + 1)
    with pytest.raises(ProfileError, match="can be written by other users"):
        read_profiles()


def test_a_file_of_another_user_is_refused_unless_it_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "env.toml"
    path.write_text(MINE)
    uid = path.stat().st_uid
    monkeypatch.setattr("nemotron_style.runtime.profiles.files.ROOT", -1)
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(ProfileError) as caught:
        read_profiles()
    (problem,) = caught.value.problems
    assert "belongs to another user" in problem.what
    assert f"NEMOTRON_ENV_FILE={path}" in problem.fix
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(path))
    assert "mine" in read_profiles()
