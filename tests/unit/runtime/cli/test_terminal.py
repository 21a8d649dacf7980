"""What comes from elsewhere cannot steer the terminal that it is shown on."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.cli import main
from nemotron_style.runtime.cli.progress import Screen
from nemotron_style.runtime.cli.table import print_table, print_tree, render_pairs
from nemotron_style.runtime.cli.terminal import (
    VisibleStream,
    escape_json,
    one_line,
    show_controls,
    write_exactly,
)
from nemotron_style.runtime.launch.base import JobHandle

Capture = pytest.CaptureFixture[str]
# A title, a hidden text, another colour, a line that is drawn over, a bell, an 8-bit sequence, a
# direction that turns around, invisible tags, another charset.
HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://x\x1b\\",
    "colour": "\x1b[31mred\x1b[0m",
    "conceal": "\x1b[8mhidden",
    "cursor": "\x1b[2K\x1b[1A",
    "return": "good\rbad ",
    "backspace": "good\x08\x08\x08\x08bad",
    "eight bit": "\x9b31m\x85\x90",
    "bidi": "\u202etxt.exe\u2066\u200f",
    "tags": "\U000e0041\U000e007f",
    "delete": "\x7f\x00",
    "half": "\ud800",
    "separator": "\u2028\u2029",
}
FORBIDDEN = set("\x1b\x07\r\x08\x9b\x85\x90\x7f\x00\u202e\u2066\u200f\ud800\u2028\u2029\U000e0041")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def look(*words: str) -> str:
    """What a command sends to the terminal, its own bold type taken away."""
    terminal = Terminal()
    with redirect_stdout(terminal), redirect_stderr(terminal):
        main(list(words))
    return terminal.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_text_is_written_out(name: str) -> None:
    hostile = HOSTILE[name]
    for stream, allowed in ((io.StringIO(), "\n"), (Terminal(), "\n")):
        visible = VisibleStream(stream)
        assert visible.write(f"a {hostile} b\n") == len(hostile) + 5
        assert not FORBIDDEN.intersection(stream.getvalue())
        assert stream.getvalue().endswith(f" b{allowed}")
    assert not (FORBIDDEN | {"\n"}).intersection(one_line(f"{hostile}\n"))
    assert json.loads(escape_json(json.dumps([hostile], ensure_ascii=False))) == [hostile]
    assert not FORBIDDEN.intersection(escape_json(json.dumps([hostile], ensure_ascii=False)))


def test_what_is_harmless_stays() -> None:
    text = "a\tb\n日本 é ☂ 👩‍👩‍👧 └── עברית\n"
    assert show_controls(text) == text
    for stream in (io.StringIO(), Terminal()):
        VisibleStream(stream).write(text)
        assert stream.getvalue() == text
    assert one_line("a\tb\n") == "a\\tb\\n"


def test_lines_of_progress_of_other_programs_are_lines() -> None:
    stream = io.StringIO()
    visible = VisibleStream(stream)
    for piece in (" 10%|#\r 20%|##\r", "\n", "end\r", "\r\nx\r\n"):
        visible.write(piece)
    assert stream.getvalue() == " 10%|#\n 20%|##\nend\n\nx\n"


def test_a_pipe_gets_logs_and_scripts_as_they_are() -> None:
    for stream, expected in ((io.StringIO(), "\x1b[1m\r"), (Terminal(), "\\x1b[1m\n")):
        write_exactly(VisibleStream(stream), "\x1b[1m\r")
        assert stream.getvalue() == expected


def test_tables_trees_and_terms_hold_one_line_a_cell(capsys: Capture) -> None:
    for hostile in [*HOSTILE.values(), "two\nlines"]:
        print_table([[hostile, "x"]], header=("A", hostile))
        print_tree({hostile: [hostile]})
        print(render_pairs([(hostile, hostile)]), end="")
        shown = capsys.readouterr().out
        assert not FORBIDDEN.intersection(shown)
        assert "two\nlines" not in shown


def test_no_command_sends_what_files_and_arguments_hold(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")  # a table without colours
    # Files hold no half characters, and arguments no NUL.
    hostile = "".join(HOSTILE.values()).replace("\ud800", "").replace("\0", "")
    quoted = json.dumps(hostile)
    profile = f'[x]\nexecutor = "local"\ndescription = {toml(hostile)}\n'
    mill.write("env.toml", f"{profile}env = {{A = {toml(hostile)}}}\n")
    mill.write("mine.yaml", f"steps: {quoted}\n{quoted}: 1\n")
    mill.write("manifests/mill/odd/default.yaml", "")
    mill.write("manifests/mill/odd/step.toml", MANIFEST.replace("TEXT", toml(hostile)))
    for words in (
        ("profiles", "list"),
        ("profiles", "show", "x"),
        ("profiles", "show", "x", "--json"),
        ("steps", "list"),
        ("steps", "list", "--tree"),
        ("steps", "show", "mill/odd"),
        ("steps", "show", "mill/odd", "--json"),
        ("steps", "show", hostile),
        ("steps", "run", "mill/grow", "-c", "./mine.yaml", "-d"),
        ("steps", "run", "mill/grow", "-r", "x", "-d"),
        ("steps", "run", "mill/grow", f"steps={hostile}"),
        ("steps", "run", "mill/bake", "-i", f"input={hostile}", "-d"),
        ("artifacts", "show", hostile),
        ("runs", "show", hostile),
    ):
        shown = look(*words)
        assert shown, words
        assert not FORBIDDEN.intersection(shown), words


MANIFEST = """
[step]
id = "mill/odd"
name = TEXT
category = "mill"
description = TEXT
tags = [TEXT]

[run]
entrypoint = "milling.recipe:run"
config = "milling.config:Config"

[[produces]]
name = "sack"
type = "grain"
description = TEXT

[[parameters]]
name = TEXT
description = TEXT

[[strategies]]
when = TEXT
then = TEXT

[[errors]]
name = TEXT
recovery = TEXT

[[models]]
name = TEXT

[reference]
TEXT = TEXT
"""


def toml(text: str) -> str:
    """``text`` as TOML writes it: every character outside ASCII, and every control, by number."""
    return '"' + "".join(f"\\U{ord(each):08x}" for each in text) + '"'


def test_the_log_of_an_attached_run_and_its_progress_do_not_either(tmp_path: Any) -> None:
    screen = Terminal()
    attempt = tmp_path / "attempts" / "1"
    attempt.mkdir(parents=True)
    handle = JobHandle("local", tmp_path, 1)
    with Screen(VisibleStream(screen)) as shown:
        for hostile in HOSTILE.values():
            report = {"done": 1, "total": 2, "figures": {"reward": hostile}}
            write_json(attempt / "progress.json", json.loads(escape_json(json.dumps(report))))
            shown.follow(f"the model says {hostile}\n", handle)
    text = screen.getvalue()
    assert "the model says" in text
    for part in ("\x1b]", "\x1b[8m", "\x1b[31m", "\u202e", "\x9b", "\x07", "\x08", "good\rbad"):
        assert part not in text


def test_the_log_of_a_run_and_the_record_of_an_artifact(
    mill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    hostile = "".join(HOSTILE.values()).replace("\ud800", "")
    sack = mill.store.stage("sack")
    (sack / "sack.txt").write_text("x")
    mill.store.commit(sack, name="sack", kind="grain", facts={f"k{hostile}": hostile})
    for words in (
        ("artifacts", "list"),
        ("artifacts", "show", "sack"),
        ("artifacts", "show", "sack", "--json"),
        ("artifacts", "lineage", "sack"),
        ("artifacts", "lineage", "sack", "--format", "json"),
        ("artifacts", "lineage", "sack", "--format", "openlineage"),
        ("artifacts", "lineage", "sack", "--format", "mermaid"),
    ):
        assert not FORBIDDEN.intersection(look(*words)), words
    assert main(["steps", "run", "mill/grow"]) == 0
    [log] = mill.home.glob("runs/*/attempts/1/log-0.txt")
    log.write_text(f"{hostile}\n", encoding="utf-8")
    look("version")
    assert not FORBIDDEN.intersection(look("runs", "logs", "latest"))
