"""The reader of data: any file, any layout, what is left out of it, and what to tell of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.steps.blocks.data.conversation import Conversation
from nemotron_style.steps.blocks.data.files.row_file import iterate_rows
from nemotron_style.steps.blocks.data.layouts.judged import compared
from nemotron_style.steps.blocks.data.layouts.layout import Layout, OwnRow, Row, Use
from nemotron_style.steps.blocks.data.layouts.table import recognise
from nemotron_style.steps.blocks.settings.row_config import LongRowReading, RowReading

if TYPE_CHECKING:
    from nemotron_style.runtime.step.context import StepContext

Parsed = TypeVar("Parsed")
Encoded = TypeVar("Encoded", bound=Sized)
SHOWN = 10

OURS = {"messages", "nemo_gym", "rated_messages", "pairs"}
"""Layouts that may stand in one file, as files of our own kinds and of NeMo-RL have them."""


class RowTooLong(InputError):
    """A row that is right and does not fit into the model."""


@dataclass
class ReadReport:
    """What was found in a data set: ``rows`` of them, how they were recognised, what is left out.

    ``problems`` are those of the first ten bad rows, with their places.
    """

    rows: int = 0
    bad: int = 0
    long: int = 0
    shortened: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def lines(self, slot: str) -> list[str]:
        """What a user is told of it, once."""
        read = self.rows - self.bad - self.long
        names = ", ".join(
            name if count == read else f"{name} ({count:,})" for name, count in self.layouts.items()
        )
        told = [f"{slot}: {read:,} rows" + (f", recognised as {names}" if names else "")]
        if self.unused:
            told.append(f"{slot}: not used: {', '.join(sorted(self.unused))}")
        if self.bad:
            told.append(f"{slot}: bad, and left out: {self.bad:,} of {self.rows:,} rows")
            told += [f"  {problem}" for problem in self.problems[:SHOWN]]
        if self.long:
            told.append(f"{slot}: too long, and left out: {self.long:,} of {self.rows:,} rows")
        if self.shortened:
            what = "too long, and without their first turns"
            told.append(f"{slot}: {what}: {self.shortened:,} of {self.rows:,} rows")
        return told

    def tell(self, ctx: StepContext, slot: str, *, output: str) -> None:
        """Say it in the log, and keep it in the record of an output, as ``<slot>_rows``."""
        for line in self.lines(slot):
            ctx.say(line)
        ctx.output(output).note(**{f"{slot}_rows": self.facts()})

    def facts(self) -> dict[str, Any]:
        """What a record keeps of it."""
        facts: dict[str, Any] = {"rows": self.rows}
        if self.layouts:
            facts["layouts"] = dict(self.layouts)
        counts = {"bad": self.bad, "too_long": self.long, "shortened": self.shortened}
        facts |= {name: count for name, count in counts.items() if count}
        if self.unused:
            facts["unused"] = sorted(self.unused)
        if self.bad:
            facts["first_bad"] = [str(problem) for problem in self.problems[:SHOWN]]
        return facts


@dataclass
class RowReader:
    """Reads the rows of a data set for one ``use``, as ``settings`` say.

    They are the section ``key`` of the config, or none of it. ``report`` is about what was read
    last. Without a ``use`` the rows have one form only, and nothing is to be recognised.
    """

    use: Use | None
    settings: RowReading = field(default_factory=RowReading)
    key: str = ""
    report: ReadReport = field(default_factory=ReadReport)

    def read(self, path: str | Path, parse: Callable[[OwnRow], Parsed]) -> list[Parsed]:
        """All rows of a file or a folder, each turned into what ``parse`` returns.

        ``parse`` is given a row of our own kind, and refuses one by raising InputError; RowTooLong
        where it does not fit. What :meth:`RowReading.on_bad_row` leaves out is in the report.

        Raises:
            InputError: a file cannot be read, holds no rows, or has more bad ones than may be.
        """
        self.report = report = ReadReport()
        parsed: list[Parsed] = []
        too_long: list[Problem] = []
        for where, row in iterate_rows(path):
            report.rows += 1
            try:
                if isinstance(row, InputError):
                    raise row
                parsed.append(self._parse(row, parse))
            except RowTooLong as error:
                report.long += 1
                too_long += _placed(error, where) if report.long <= SHOWN else []
            except InputError as error:
                report.bad += 1
                report.problems += _placed(error, where) if report.bad <= SHOWN else []
        self._check(path, too_long)
        if not parsed:
            what = "no row is left" if report.rows else "the file holds no rows"
            raise InputError(Problem(where=str(path), what=what))
        return parsed

    def shorten(
        self,
        conversations: Sequence[Conversation],
        encode: Callable[[Conversation], Encoded],
        *,
        limit: int,
        problem: Problem,
    ) -> list[Encoded]:
        """The encoded conversations of a row, of at most ``limit`` tokens each.

        With ``truncate_prompt`` all of them lose their first question and its answer, and the
        next, until the longest fits. ``problem`` is what else is refused.

        Raises:
            RowTooLong: one does not fit, or would not with its last question alone.
        """
        encoded = [encode(conversation) for conversation in conversations]
        size = longest = max(map(len, encoded))
        while self._truncates and longest > limit:
            shorter = [_without_first_turns(conversation) for conversation in conversations]
            if None in shorter:
                break
            conversations = [each for each in shorter if each is not None]
            encoded = [encode(conversation) for conversation in conversations]
            longest = max(map(len, encoded))
        if longest > limit:
            raise RowTooLong(replace(problem, got=f"{size} tokens"))
        self.report.shortened += longest < size
        return encoded

    @property
    def _long_rows(self) -> str:
        return self.settings.long_rows if isinstance(self.settings, LongRowReading) else "stop"

    @property
    def _truncates(self) -> bool:
        return self._long_rows == "truncate_prompt"

    def _parse(self, row: Row, parse: Callable[[OwnRow], Parsed]) -> Parsed:
        try:
            return parse(self.own_row(row))
        except InputError as error:
            if "messages" in row or "conversations" not in row:
                raise
            renamed = (
                replace(one, key=one.key.replace("messages", "conversations", 1))
                for one in error.problems
            )
            raise type(error)(renamed) from error

    def own_row(self, row: Row) -> OwnRow:
        """A row as our own kind; it has the layout of the rows before it."""
        if self.use is None:
            return row
        layout = recognise(row, self.use, self.settings.layout, key=self.key or "data")
        known = self.report.layouts
        if known and layout.name not in known and not {layout.name, *known} <= OURS:
            what, first = "the rows of a data set have one layout", next(iter(known))
            raise InputError(Problem(what=what, got=layout.name, allowed=f"{first}, as before"))
        known[layout.name] += 0  # the first row decides, good or bad
        unused: set[str] = set()
        own = layout.read(row, unused)
        if self.use == "comparisons" and "chosen" in own:
            own = compared(own)
        if self.use == "prompts" and row.get("principle") is not None:
            own["principle"] = row["principle"]  # what answers are judged by
        known[layout.name] += 1
        self._note_unused(row, layout, unused)
        return own

    def _note_unused(self, row: Row, layout: Layout, unused: set[str]) -> None:
        self.report.unused.update(unused)
        if layout.columns is None:
            return
        used = layout.columns | ({"principle"} if self.use == "prompts" else set())
        self.report.unused.update(
            name for name, value in row.items() if name not in used and value is not None
        )

    def _long_fix(self, problem: Problem) -> str:
        if not isinstance(self.settings, LongRowReading) or not self.key:
            return problem.fix
        skip = f"leave such rows out with {self.key}.long_rows=skip"
        return f"{problem.fix}; or {skip}" if problem.fix else skip

    def _check(self, path: str | Path, too_long: list[Problem]) -> None:
        """Refuse what may not be left out, all of it at once."""
        report, settings = self.report, self.settings
        problems: list[Problem] = []
        if report.bad and settings.on_bad_row == "stop":
            problems += report.problems
            if report.bad > SHOWN:
                what = f"{report.bad} bad rows in all, {SHOWN} shown"
                fix = f"mend them, or leave them out with {self.key}.on_bad_row=skip"
                fix = fix if self.key else "mend them"
                problems.append(Problem(where=str(path), what=what, fix=fix))
        elif report.bad > (budget := settings.row_budget(report.rows)):
            problems += report.problems
            problems.append(
                Problem(
                    where=str(path),
                    key=f"{self.key}.max_bad_rows",
                    what="more rows are bad than may be left out",
                    got=f"{report.bad} of {report.rows}",
                    allowed=f"{budget} ({settings.max_bad_rows:g})",
                )
            )
        if report.long and self._long_rows != "skip":
            problems += [replace(one, fix=self._long_fix(one)) for one in too_long]
            if report.long > SHOWN:
                what = f"{report.long} rows are too long in all, {SHOWN} shown"
                problems.append(Problem(where=str(path), what=what))
        if problems:
            raise InputError(problems)


def _without_first_turns(conversation: Conversation) -> Conversation | None:
    """The conversation without its first question and answer, or None where there is none."""
    turns = conversation.turns
    if [turn.speaker for turn in turns[:2]] != ["User", "Assistant"]:
        return None
    marks = conversation.trained and conversation.trained[1:]
    if marks is not None and not any(marks):
        return None  # the only answer that is trained would go
    return replace(conversation, turns=turns[2:], trained=marks)


def _placed(error: InputError, where: str) -> list[Problem]:
    return [replace(problem, where=where) for problem in error.problems]
