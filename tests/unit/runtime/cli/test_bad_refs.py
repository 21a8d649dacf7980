"""Names, refs, records and store roots that cannot be used: one line each, and nothing is done."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from disks import Refusals
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.store.record import render_sealed
from nemotron_style.runtime.store.store import Store

Capture = pytest.CaptureFixture[str]
BAD_NAMES = ("", "..", "a/../b", "/etc/passwd", "x" * 300, "a\x1b[31mb", "a\nb", "a\0b", "sha256")
ADOPT = ("artifacts", "adopt", "rows.jsonl", "--kind", "stone", "--name")


@pytest.fixture
def root(mill: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the artifact ``sack``, and a file to adopt in the working directory."""
    (mill.root / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(mill.root)
    for name in ("sack", "other"):
        (mill.root / name).write_text(name)
        Store(mill.home).adopt(mill.root / name, kind="stone", name=name)
    return Path(mill.home)


def refuse(capsys: Capture, *words: str, code: int = 2) -> str:
    """What a command says that must fail, in lines that a terminal can be trusted with."""
    capsys.readouterr()
    assert main(list(words)) == code, words
    said = capsys.readouterr().err
    assert all(line.isprintable() and len(line) < 600 for line in said.splitlines()), said
    assert "Traceback" not in said
    return said


def picture(root: Path) -> dict[str, bytes]:
    """Everything in the folder above the store, but for what is staged, and bytecode."""
    files = (path for path in root.parent.rglob("*") if path.is_file())
    passed_over = {"staging", "__pycache__"}
    return {str(path): path.read_bytes() for path in files if passed_over.isdisjoint(path.parts)}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_cannot_be_used_touches_nothing(root: Path, capsys: Capture, name: str) -> None:
    before = picture(root)
    commands = [
        (*ADOPT, name),
        ("steps", "run", "mill/bake", "--name", name, "--dry-run"),
        *(("artifacts", verb, name) for verb in ("show", "lineage", "rm", "verify")),
        ("artifacts", "gc", "--keep", name),
        ("artifacts", "list", name),
        ("artifacts", "diff", name, "sack"),
    ]
    for words in commands:
        said = refuse(capsys, *words)
        assert said.count("\n") == 1, (words, said)
        assert "cannot be used" in said or "is not there" in said or "no such" in said, said
    others = [
        ("artifacts", "adopt", "", "--kind", "stone", "--name", "new"),
        ("artifacts", "adopt", "a\nb", "--kind", "stone", "--name", "new"),
        ("artifacts", "adopt", "rows.jsonl", "--kind", name, "--name", "new"),
        *(("runs", verb, name) for verb in ("show", "rerun", "rm")),
    ]
    for words in others:
        assert refuse(capsys, *words).count("\n") == 1, words
    assert picture(root) == before


def test_what_no_run_made_is_not_taken_for_a_run(root: Path, capsys: Capture) -> None:
    for verb in ("show", "rerun"):
        assert "no run made sack:v1: it was adopted" in refuse(capsys, "runs", verb, "sack")


@pytest.mark.parametrize("ref", ["sacks", "sack:v7", "sha256:abcdef", "run:never-1/model"])
def test_a_ref_that_names_nothing_says_what_there_is(root: Path, capsys: Capture, ref: str) -> None:
    for words in (["artifacts", "show"], ["artifacts", "lineage"], ["artifacts", "rm"]):
        said = refuse(capsys, *words, ref)
        assert said.count("\n") == 1
        assert any(word in said for word in ("'sack'", "allowed: v1", "artifacts list")), said
    said = refuse(capsys, "steps", "run", "mill/bake", "-i", f"input={ref}", "--dry-run")
    assert (ref.partition(":")[0] in said, said.count("\n")) == (True, 1)


def rewrite(path: Path, **fields: Any) -> None:
    body = json.loads(path.read_text())
    del body["seal"]
    path.chmod(0o644)
    path.write_text(render_sealed({**body, **fields}))


def flip(path: Path) -> None:
    path.chmod(0o644)
    path.write_text(path.read_text().replace("stone", "stove"))


@pytest.mark.parametrize("what", ["newer", "damaged"])
@pytest.mark.parametrize("name", ["sack", "other"])
def test_a_record_that_cannot_be_read_is_one_line_in_every_command(
    root: Path, capsys: Capture, what: str, name: str
) -> None:
    path = root / "artifacts" / name / "v1" / "artifact.json"
    rewrite(path, schema_version=2) if what == "newer" else flip(path)
    words = "a newer nemotron-style wrote" if what == "newer" else "is not the one that was"
    for command in (["show"], ["lineage"], ["verify"], ["rm"]):
        said = refuse(capsys, "artifacts", *command, name, code=1)
        assert (words in said, said.count("\n")) == (True, 1)
    assert words in refuse(capsys, "steps", "run", "mill/bake", "-i", f"input={name}", "-d")
    assert main(["artifacts", "list"]) == 0
    listed = capsys.readouterr()
    assert listed.err.count(words) == 1
    assert "other" in listed.out or "sack" in listed.out


def test_a_root_that_is_gone_is_empty_to_readers_and_says_so(root: Path, capsys: Capture) -> None:
    shutil.rmtree(root)
    assert f"there are no artifacts in {root}" in refuse(capsys, "artifacts", "show", "sack")
    assert f"there are no runs in {root}" in refuse(capsys, "runs", "show", "latest")
    assert main(["artifacts", "list"]) == main(["runs", "list"]) == 0
    assert f"no runs in {root}\n" in capsys.readouterr().out
    assert "there is no store here" in refuse(capsys, "artifacts", "verify", code=1)
    assert not root.exists()


def test_a_root_that_is_a_file_is_refused(root: Path, capsys: Capture) -> None:
    shutil.rmtree(root)
    root.write_text("")
    for words in (["artifacts", "list"], ["runs", "list"], [*ADOPT, "new"]):
        assert "is not a folder" in refuse(capsys, *words)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "Read-only file system"), (errno.ENOSPC, "there is no room for a copy")],
)
@pytest.mark.parametrize("name", ["new", "sack"])
def test_a_root_that_is_read_only_or_full_says_so_and_is_read_all_the_same(
    root: Path, capsys: Capture, number: int, words: str, name: str
) -> None:
    with Refusals(number, 0, lasting=True).at_work():
        said = refuse(capsys, *ADOPT, name)
        assert (words in said, said.count("\n")) == (True, 1), said
        assert main(["artifacts", "show", "sack"]) == 0
    assert main([*ADOPT, name]) == 0
