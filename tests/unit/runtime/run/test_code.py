"""Which sources count for a run, and what is told of the checkout they lie in."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.errors import ManifestError, UsageError
from nemotron_style.runtime.run import code
from nemotron_style.runtime.run.code import (
    describe_code,
    digest_code,
    find_module,
    find_package,
    hash_files,
    walk_sources,
)


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_every_file_of_the_steps_package_counts_and_no_other(mill: Any) -> None:
    before = digest_code("milling.recipe:run")
    for name in (
        "other/recipe.py",
        "milling/.env",
        "milling/.git/HEAD",
        "milling/__pycache__/x.py",
        "milling/x.pyc",
        "milling/config.py~",
        "milling/venv/pyvenv.cfg",
        "milling/venv/lib/x.py",
    ):
        mill.write(f"code/{name}", "x = 1\n")
    assert digest_code("milling.recipe:run") == before
    seen = {before}
    for name in ("config.py", "prompt.txt", "deep/er/template.jinja", "lib.so", "more/__init__.py"):
        mill.write(f"code/milling/{name}", "x = 1\n")
        seen.add(digest_code("milling.recipe:run"))
    assert len(seen) == 6


def test_what_a_step_shares_with_its_neighbours_counts(mill: Any) -> None:
    mill.write("code/company/steps/a/recipe.py", "from company.lib import speed\n")
    mill.write("code/company/lib.py", "speed = 1\n")
    entrypoint = "company.steps.a.recipe:run"  # a namespace package: nothing has an __init__
    assert find_package(entrypoint) == ("company", mill.root / "code/company")
    before = digest_code(entrypoint)
    mill.write("code/company/lib.py", "speed = 2\n")
    assert digest_code(entrypoint) != before


def test_the_package_of_the_config_class_counts_too(mill: Any) -> None:
    mill.write("code/settings/config.py", "class Config: ...\n")
    objects = ("milling.recipe:run", "settings.config:Config")
    before = digest_code(*objects)
    assert before != digest_code(objects[0])
    mill.write("code/settings/config.py", "class Config: speed = 2\n")
    assert digest_code(*objects) != before


def test_the_modules_of_a_package_that_is_the_entrypoint_count(mill: Any) -> None:
    before = digest_code("milling:run")
    mill.write("code/milling/config.py", "x = 1\n")
    assert digest_code("milling:run") != before


def test_a_linked_folder_counts_and_a_loop_of_links_ends(mill: Any) -> None:
    shared = mill.write("shared/prompts/judge.txt", "be fair\n").parent
    (mill.root / "code/milling/prompts").symlink_to(shared)
    (mill.root / "code/milling/loop").symlink_to(mill.root / "code/milling")
    (mill.root / "code/milling/broken").symlink_to("nowhere")
    os.mkfifo(mill.root / "code/milling/pipe")
    before = digest_code("milling.recipe:run")
    mill.write("shared/prompts/judge.txt", "be kind\n")
    assert digest_code("milling.recipe:run") != before


def test_two_names_and_contents_are_never_taken_for_one(tmp_path: Path) -> None:
    content = hashlib.sha256(b"1").hexdigest()
    (tmp_path / "a").write_text("1")
    names = [[("a", "b")], [(f'a" {content}\n"b', "b")], [("a", "a"), ("b", "b")]]
    digests = {hash_files((name, tmp_path / "a") for name, _ in files) for files in names}
    assert len(digests) == 3


def test_a_package_that_holds_data_is_refused(mill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mill.write("code/milling/data.bin", "x" * 5000)
    monkeypatch.setattr(code, "MOST_BYTES", 4000)
    with pytest.raises(UsageError, match=r"the package milling holds more than.*keep data"):
        walk_sources(mill.root / "code" / "milling", "milling")


def test_of_this_package_the_step_and_the_blocks_count() -> None:
    ours = [
        digest_code(f"nemotron_style.steps.{step}.recipe:run") for step in ("sft.chat", "data.toy")
    ]
    assert len(set(ours)) == 2


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


def commit_everything(mill: Any) -> str:
    """Commit the project; returns the entrypoint of its steps."""
    git(mill.root, "init", "-q")
    git(mill.root, "add", ".")
    git(mill.root, "commit", "-qm", "x")
    return "milling.recipe:run"


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


def test_what_git_does_not_track_is_a_difference(mill: Any) -> None:
    entrypoint = commit_everything(mill)
    clean = describe_code(entrypoint, "d")
    changes = {"new.py": "x = 1\n", "ignored.py": "x = 2\n", "prompt.txt": "be kind\n"}
    mill.write(".git/info/exclude", "ignored.py\n")
    seen = {clean.get("difference")}
    for name, text in changes.items():
        path = mill.write(f"code/milling/{name}", text)
        seen.add(describe_code(entrypoint, "d")["difference"])
        path.unlink()
    (mill.root / "code/milling/config.py").unlink()
    seen.add(describe_code(entrypoint, "d")["difference"])
    assert len(seen) == 5
    git(mill.root, "checkout", "-q", ".")
    mill.write("code/beside.txt", "no source of the step\n")
    assert describe_code(entrypoint, "d") == clean


def test_a_module_that_the_surrounding_project_does_not_track_has_no_commit(mill: Any) -> None:
    git(mill.root, "init", "-q")
    git(mill.root, "commit", "-qm", "x", "--allow-empty")
    assert "commit" not in describe_code("milling.recipe:run", "d")
    mill.write(".gitignore", "code/\n")
    git(mill.root, "add", ".")
    git(mill.root, "commit", "-qm", "y")
    assert "commit" not in describe_code("milling.recipe:run", "d")


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_NAMESPACE"])
def test_variables_of_git_do_not_lead_to_another_repository(
    mill: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    entrypoint = commit_everything(mill)
    expected = describe_code(entrypoint, "d")
    git(tmp_path, "init", "-q", "other")
    git(tmp_path / "other", "commit", "-qm", "other", "--allow-empty")
    monkeypatch.setenv(name, str(tmp_path / "other" / ".git"))
    assert describe_code(entrypoint, "d") == expected


def test_settings_of_git_neither_change_the_difference_nor_run_a_program(mill: Any) -> None:
    entrypoint = commit_everything(mill)
    mill.write("code/milling/config.py", "x = 2\n")
    expected = describe_code(entrypoint, "d")
    proof = mill.root / "ran"
    program = mill.write("program.sh", f"#!/bin/sh\ntouch {proof}\ncat\n")
    program.chmod(0o755)
    mill.write(".git/info/attributes", "*.py filter=x diff=x\n")
    for key in ("core.fsmonitor", "diff.external", "diff.x.textconv", "filter.x.clean"):
        git(mill.root, "config", key, str(program))
    for key, value in {"diff.noprefix": "true", "diff.context": "9", "core.abbrev": "5"}.items():
        git(mill.root, "config", key, value)
    assert describe_code(entrypoint, "d") == expected
    assert not proof.exists()


def test_a_replaced_commit_is_not_taken_for_the_recorded_one(mill: Any) -> None:
    entrypoint = commit_everything(mill)
    first = describe_code(entrypoint, "d")
    mill.write("code/milling/config.py", "x = 2\n")
    git(mill.root, "commit", "-qam", "y")
    second = describe_code(entrypoint, "d")
    assert "difference" not in second
    git(mill.root, "replace", second["commit"], first["commit"])
    assert describe_code(entrypoint, "d") == second


def test_no_git_is_no_obstacle(mill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    told = describe_code("milling.recipe:run", "d")
    assert set(told) == {"entrypoint", "digest", "version"}
