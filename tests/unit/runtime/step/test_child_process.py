"""A program in a process of its own: its output is read to the end, whatever outlives it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from nemotron_style.runtime.step.child_process import ChildProcess


def start(code: str, lines: list[str], home: Path) -> ChildProcess:
    return ChildProcess(
        [sys.executable, "-S", "-c", code],
        folder=home,
        environment=os.environ | {"PYTHONUNBUFFERED": "1"},
        own_session=True,
        on_line=lines.append,
    )


def test_all_that_a_script_wrote_is_passed_on_before_its_exit_code(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; sys.stdout.write('\\n'.join(map(str, range(20000)))); sys.exit(3)"
    assert start(code, lines, tmp_path).wait(120) == 3
    assert lines == [str(number) for number in range(20000)]


def test_a_child_that_outlives_the_script_and_keeps_its_output_open_is_not_waited_for(
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    code = (
        "import os, signal\nchild = os.fork()\nif not child:\n    signal.pause()\n"
        "print(child, flush=True)\nprint('half of a line', end='', flush=True)\nos._exit(0)"
    )
    process = start(code, lines, tmp_path)
    assert process.wait(120) == 0
    os.kill(int(lines[0]), signal.SIGKILL)
    assert lines[1:] == ["half of a line"]


def test_a_bar_that_is_drawn_again_is_a_line_each_time_and_bytes_that_are_no_text_are_kept_out(
    tmp_path: Path,
) -> None:
    lines: list[str] = []
    code = (
        "import os; os.write(1, b'10%\\r20%\\r\\nd\\xffone \\xe2'); os.write(1, b'\\x9c\\x93\\n')"
    )
    assert start(code, lines, tmp_path).wait(120) == 0
    assert lines == ["10%", "20%", "d\N{REPLACEMENT CHARACTER}one ✓"]


def test_a_script_that_closed_its_output_is_waited_for_and_ended(tmp_path: Path) -> None:
    process = start("import os, signal; os.close(1); os.close(2); signal.pause()", [], tmp_path)
    assert process.wait(0.05) is None
    assert process.stop() == -signal.SIGTERM
