"""What an attached command line shows of a run: its log and, on a terminal, how far it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.cli.table import open_console
from nemotron_style.runtime.cli.terminal import one_line, unfiltered, write_exactly
from nemotron_style.runtime.launch.base import JobHandle, attempt_of
from nemotron_style.runtime.planning.pipeline import PlannedRun
from nemotron_style.runtime.step.progress import format_progress

if TYPE_CHECKING:
    from rich.live import Live

BAR_WIDTH = 20
# A line of the log that says what the line below it shows already; the last one stays.
PROGRESS_LINE = re.compile(r"(\d+)/(?!\1\b)\d+(  [^=]+(/s| each)  [^=]+ left)?(  \S+=\S+)*\n")


class Screen:
    """A watcher that writes to ``stream``; on a terminal, the last line shows the progress."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._unfinished = ""  # the end of the log, while it is no whole line
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()
        self.stream.write(self._unfinished)
        self.stream.flush()

    def begin(self, run: PlannedRun) -> None:
        """Announce a run and the decision about it."""
        plan, decision = run.plan, run.decision
        text = f"== {plan.step} ({plan.config_name})  {decision.action}: {decision.reason}\n"
        # What is noted of a job is of no use to those who need none.
        notes = () if decision.action == "reuse" else plan.notes
        self._write(text + "".join(f"note: {note}\n" for note in notes))

    def follow(self, text: str, handle: JobHandle) -> None:
        """Show more of the log, and how far the run is."""
        if not self.stream.isatty():
            write_exactly(self.stream, text)
            self.stream.flush()
            return
        # The line of progress would be drawn over the beginning of a line.
        whole, newline, self._unfinished = (self._unfinished + text).rpartition("\n")
        lines = (whole + newline).splitlines(keepends=True)
        self._write("".join(line for line in lines if not PROGRESS_LINE.fullmatch(line)))
        report = read_json(attempt_of(handle).path / "progress.json")
        if report and report["done"] < report["total"]:
            self._draw(report)
        else:
            self._erase()

    def warn(self, text: str) -> None:
        """Say something that is not of the log."""
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        if text:
            self._erase()
            self.stream.write(text)
            self.stream.flush()

    def _draw(self, report: Mapping[str, Any]) -> None:
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        if self._live is None:
            console = open_console(unfiltered(self.stream))
            self._live = Live(
                console=console,
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        line = Table.grid(padding=(0, 2))
        width = self._live.console.width
        bar_width = min(BAR_WIDTH, width // 8)  # on 80 columns, a validation is worth more
        bar = ProgressBar(total=report["total"], completed=report["done"], width=bar_width)
        room = width - bar_width - 3
        line.add_row(bar, one_line(format_progress(report, room=room)))
        self._live.update(line, refresh=True)

    def _erase(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
