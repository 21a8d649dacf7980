"""What the system refuses of a user's files is one message with its place, and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.errors import UsageError, explain_system_error
from nemotron_style.runtime.text_file import read_json_file, read_text_file

Capture = pytest.CaptureFixture[str]
LONG = "x" * 300

ALIASES = "a0: &a0 {x: 1, y: 2}\n"
BOMBS = {
    "list": "a{0}: &a{0} [{1}]\n",
    "table": "a{0}: &a{0} {{k: [{1}]}}\n",
    "merge": "a{0}: &a{0} {{<<: [{1}]}}\n",
}


def bomb(line: str) -> str:
    """Nine lines that stand for 10^9 values."""
    lines = (line.format(at, ",".join([f"*a{at - 1}"] * 10)) for at in range(1, 10))
    return ALIASES + "".join(lines)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def write(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data) and None


NODES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a loop of links": (make_loop, ": cannot be read: Too many levels of symbolic links"),
    "a pipe": (os.mkfifo, ": is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), ": is not a regular file"),
    "a folder": (Path.mkdir, ": cannot be read: Is a directory"),
    "no file": (lambda path: None, ": there is no such file"),
    "bytes": (write(b"a: 1\nb: \xff\xfe\n"), ":2: is not UTF-8 text; got byte 0xff"),
    "UTF-16": (write("a: 1".encode("utf-16")), ":1: is not UTF-8 text"),
    "a NUL character": (write("a: 1\nb: '\0'\n"), ":2: holds a NUL character"),
    "a large file": (write("# " + "x" * (1 << 20)), ": is larger than 1,048,576 bytes"),
}
YAML: dict[str, tuple[str, str]] = {
    "brackets": ("a: " + "[" * 400 + "]" * 400, ": is nested deeper than 64 levels"),
    "open brackets": ("a: " + "[" * 20_000, ": is nested deeper than 64 levels"),
    "braces": ("a: " + "{b: " * 400 + "1" + "}" * 400, ": is nested deeper than 64 levels"),
    **{name: (bomb(line), ": holds more than 20,000 values") for name, line in BOMBS.items()},
    "many values": ("a:\n" + "- 1\n" * 200_000, ":19999:3: is not valid YAML: holds more than"),
    "a long number": ("a: 1\nsteps: " + "9" * 10_000, ":2:8: is not valid YAML: a number of more"),
    "a long hexadecimal": ("steps: 0x" + "f" * 10_000, ":1:8: is not valid YAML: a number of more"),
    "half a pair": ('steps: "\\ud800"', ":1:8: is not valid YAML: half of a surrogate pair"),
    "no date": ("steps: !!timestamp x", ":1: steps: the tag 'tag:yaml.org,2002:timestamp' cannot"),
    "no boolean": ("steps: !!bool x", ":1: steps: the tag 'tag:yaml.org,2002:bool' cannot"),
    "no integer": ("steps: !!int x", ":1: steps: the tag 'tag:yaml.org,2002:int' cannot"),
    "a control character": ("a: 1\nsteps: \x1b", ":2: is not valid YAML: the character '\\x1b'"),
}
TOML: dict[str, tuple[str, str]] = {
    "brackets": ("[x]\na = " + "[" * 4000, ": is nested too deeply to be read"),
    "a long number": (
        "[x]\nnodes = " + "9" * 10_000,
        ":2: holds a number of more than 4300 digits",
    ),
    "a long hexadecimal": ("[x]\nnodes = 0x" + "f" * 9000, ":2: holds a number of more than 4300"),
    "no value": ("[x]\n\na = \n", ":3: is not valid TOML: Invalid value"),
}
FILES = {name: (write(text), message) for name, (text, message) in YAML.items()}
TABLES = {name: (write(text), message) for name, (text, message) in TOML.items()}


def refuse(capsys: Capture, *words: str) -> str:
    """The one message of a command that must end with 2 within seconds of processor time."""
    begun = time.process_time()
    assert main(list(words)) == 2
    assert time.process_time() - begun < 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert len(shown.err.splitlines()) == 1
    return shown.err


@pytest.mark.parametrize("name", [*NODES, *FILES])
def test_a_config_that_cannot_be_read(mill: Any, capsys: Capture, name: str) -> None:
    make, message = {**NODES, **FILES}[name]
    make(mill.root / "mine.yaml")
    assert f"mine.yaml{message}" in refuse(capsys, "steps", "run", "mill/grow", "-c", "./mine.yaml")


@pytest.mark.parametrize("name", [name for name in NODES if name != "no file"])
def test_what_a_config_inherits_from(mill: Any, capsys: Capture, name: str) -> None:
    make, message = NODES[name]
    make(mill.root / "base.yaml")
    mill.write("mine.yaml", "defaults: base\n")
    words = ("steps", "run", "mill/grow", "-c", "./mine.yaml", "-d")
    assert f"base.yaml{message}" in refuse(capsys, *words)


def test_a_config_that_inherits_2_to_the_50_times_is_read_once(mill: Any, capsys: Capture) -> None:
    mill.write("c50.yaml", "steps: x\n")
    for at in range(50):
        mill.write(f"c{at}.yaml", f"defaults: [c{at + 1}, c{at + 1}]\n")
    assert "c50.yaml:1: steps" in refuse(capsys, "steps", "run", "mill/grow", "-c", "./c0.yaml")


@pytest.mark.parametrize("name", [*NODES, *TABLES])
def test_the_file_of_profiles(
    mill: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, message = {**NODES, **TABLES}[name]
    make(mill.root / "mine.toml")
    monkeypatch.setenv("NEMOTRON_ENV_FILE", "mine.toml")
    text = refuse(capsys, "profiles", "list")
    missing = name in ("no file", "a loop of links")
    assert ("there is no such file" if missing else f"mine.toml{message}") in text


@pytest.mark.parametrize("name", [*NODES, *TABLES])
def test_the_manifest_of_a_step_takes_away_its_own_step_only(
    mill: Any, capsys: Capture, name: str
) -> None:
    make, message = {**NODES, **TABLES}[name]
    mill.write("manifests/mill/own/default.yaml", "")
    make(mill.root / "manifests" / "mill" / "own" / "step.toml")
    assert main(["steps", "list"]) == 0
    shown = capsys.readouterr()
    assert "mill/grow" in shown.out
    # A link that leads nowhere is no manifest either.
    is_there = name not in ("no file", "a loop of links")
    assert (f"own/step.toml{message}" in shown.err) == is_there


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def run(:\n", "invalid syntax (config.py, line 1)"),
        ("import os\n\nraise OSError('no stone')\n", "OSError: no stone"),
        ("x = '\0'\n", "null bytes"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
    ],
)
def test_a_module_of_a_step_that_cannot_be_imported(
    mill: Any, capsys: Capture, source: str, message: str
) -> None:
    mill.write("code/milling/config.py", source)
    text = refuse(capsys, "steps", "run", "mill/grow")
    assert "step.toml: run.config: 'milling.config:Config' cannot be imported" in text
    assert message in text


@pytest.mark.parametrize("name", [*(name for name in NODES if name != "no file"), *TABLES])
def test_the_kinds_of_a_project(mill: Any, capsys: Capture, name: str) -> None:
    make, message = {**NODES, **TABLES}[name]
    path = mill.root / "manifests" / "kinds.toml"
    path.unlink()
    make(path)
    assert f"kinds.toml{message}" in refuse(capsys, "steps", "list")


@pytest.mark.parametrize("name", ["a loop of links", "a pipe", "a device"])
def test_what_is_given_as_an_input_or_adopted(mill: Any, capsys: Capture, name: str) -> None:
    NODES[name][0](mill.root / "sack")
    for words in (
        ("steps", "run", "mill/bake", "-c", "bare", "-i", "input=./sack"),
        ("artifacts", "adopt", "./sack", "--kind", "flour", "--name", "sack"),
    ):
        assert "sack: " in refuse(capsys, *words)
    assert not mill.home.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("steps", "run", "mill/grow", "-c", f"./{LONG}.yaml"),
        ("steps", "run", "mill/bake", "-c", "bare", "-i", f"input=./{LONG}"),
        ("artifacts", "adopt", LONG, "--kind", "flour", "--name", "x"),
    ],
)
def test_a_name_that_is_too_long(mill: Any, capsys: Capture, words: tuple[str, ...]) -> None:
    assert "ile name too long" in refuse(capsys, *words)


def test_a_name_that_is_too_long_of_an_environment_variable(
    mill: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMOTRON_ENV_FILE", f"/tmp/{LONG}")
    assert "File name too long" in refuse(capsys, "profiles", "list")


@pytest.mark.parametrize("value", ["9" * 10_000, "0x" + "f" * 10_000, "\udcff", "[" * 400])
def test_an_override_that_cannot_be_read(mill: Any, capsys: Capture, value: str) -> None:
    text = refuse(capsys, "steps", "run", "mill/grow", f"steps={value}", "-d")
    assert text.startswith("error: override 'steps': steps: the value cannot be read: ")


def test_a_working_directory_that_was_removed(
    mill: Any, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (("steps", "list"), ("runs", "list"), ("steps", "run", "mill/grow")):
        assert "error: working directory: was removed" in refuse(capsys, *words)


def test_a_file_that_may_not_be_read_is_not_blamed_on_the_store(
    mill: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_all(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("nemotron_style.runtime.run.code._hash_each", refuse_all)
    text = refuse(capsys, "steps", "run", "mill/grow")
    assert "Permission denied" in text
    assert "store" not in text


def test_an_error_of_the_system_in_words() -> None:
    assert str(explain_system_error(OSError(28, "No space left on device", "/a/b"))) == (
        "/a/b: No space left on device"
    )
    assert "nested too deeply" in str(explain_system_error(RecursionError()))
    assert str(explain_system_error(OSError("odd"))) == "odd"


def test_a_json_file_names_its_line(tmp_path: Path) -> None:
    for content, message in (
        ('{"a":\n 1,}', "a.json:2: is not valid JSON"),
        ('{"a":\n' + "1" * 5000 + "}", "a.json:2: holds a number of more than 4300 digits"),
        ("[" * 100_000, "a.json: is nested too deeply"),
        ("[]", "a.json: is not a JSON object"),
    ):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(UsageError, match=message):
            read_json_file(tmp_path / "a.json", UsageError)
    with pytest.raises(UsageError, match="embedded null byte"):
        read_text_file(tmp_path / "a\0b", UsageError)


def test_a_file_of_a_run_that_is_nested_without_an_end_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a":' + "[" * 100_000)
    assert read_json(tmp_path / "a.json") is None


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a line in which $CLI is the command line."""
    start = "import sys; from nemotron_style.runtime.cli import main; sys.exit(main())"
    environment = os.environ | {"CLI": start, "PYTHON": sys.executable}
    line = line.replace("CLI", '"$PYTHON" -c "$CLI"')
    return subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("CLI steps list >/dev/full", 2, "standard output: cannot be written: No space left"),
        ("CLI steps list >&-", 2, "standard output: is closed"),
        ("CLI steps list 2>&- <&- >/dev/null", 0, ""),
        ("CLI steps shwo >/dev/null 2>/dev/full", 2, ""),
        ("CLI steps list | true; exit ${PIPESTATUS[0]}", 2, ""),
    ],
)
def test_standard_output_that_is_closed_or_full(
    mill: Any, line: str, code: int, message: str
) -> None:
    done = shell(line)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == bool(message)
