"""Errors that a user may see, each a list of :class:`Problem`.

Problems are collected before they are raised, so that one run of a command shows everything that
has to be corrected.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, in the order a reader needs it.

    ``where`` is a file (with a line), a flag or a step; ``key`` the dotted key, slot or field;
    ``got`` and ``allowed`` are shown verbatim; ``fix`` is an instruction.
    """

    what: str
    where: str = ""
    key: str = ""
    got: str = ""
    allowed: str = ""
    fix: str = ""

    def __str__(self) -> str:
        place = _one_line(": ".join(part for part in (self.where, self.key) if part))
        details = [f"got {_one_line(self.got)}"] if self.got else []
        details += [f"allowed: {self.allowed}"] if self.allowed else []
        details += [self.fix] if self.fix else []
        head = f"{place}: {self.what}" if place else self.what
        return "; ".join([head, *details])

    def as_dict(self) -> dict[str, str]:
        """The non-empty fields, for ``--json``."""
        return {name: value for name, value in vars(self).items() if value}


def _one_line(name: str) -> str:
    """A name that somebody chose: with line feeds it must not look like two problems."""
    return name.replace("\n", "\\n")


class StepsError(Exception):
    """Base of every error a user may see; ``exit_code`` is what the CLI exits with."""

    exit_code = 1

    def __init__(self, problems: Problem | str | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(what=problems)
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems: Sequence[Problem] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(StepsError, ValueError):
    """A command line that cannot be understood."""

    exit_code = 2


class ConfigError(UsageError):
    """A config, an override or an interpolation that does not fit the step's schema."""


class ManifestError(UsageError):
    """A ``step.toml`` or ``kinds.toml`` that cannot be used."""


class ProfileError(UsageError):
    """A profile that cannot be used."""


class InputError(UsageError):
    """An input artifact or a data row that breaks a rule, found before work began."""


class RefError(UsageError, LookupError):
    """A reference that names no artifact, run or step."""


class ArtifactError(StepsError, ValueError):
    """An artifact whose bytes are not those that were committed."""


class StoreError(UsageError):
    """A store that cannot be reached, or refuses what it is asked for."""


class NewerRecord(ArtifactError):
    """A record of a later schema: whole, and not ours to read, to mend or to remove."""


class OutputError(StepsError):
    """Standard output or standard error that takes nothing more.

    ``was_left``: the program that reads it has ended, as ``head`` does, and waits for no word.
    """

    exit_code = 2

    def __init__(self, problem: Problem, *, was_left: bool = False) -> None:
        super().__init__(problem)
        self.was_left = was_left


class StepFailed(StepsError, RuntimeError):
    """A step that began and did not finish."""


class Interrupted(StepsError):
    """A step that was asked to stop and saved its state first."""

    exit_code = 130


def explain_system_error(error: OSError | UnicodeError | RecursionError) -> Problem:
    """What the system refused, in words for a user, with the path where there is one."""
    if isinstance(error, RecursionError):
        return Problem(what="what was given is nested too deeply to be read")
    if isinstance(error, UnicodeError):
        return Problem(what=f"a text that was given is not UTF-8: {error}")
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if _is_path(name)]
    where = " and ".join(map(shorten, names))
    if not where and isinstance(error, FileNotFoundError) and not _has_working_directory():
        what, fix = "was removed", "change to another one: cd"
        return Problem(where="working directory", what=what, fix=fix)
    return Problem(where=where, what=error.strerror or str(error) or type(error).__name__)


def _is_path(name: object) -> bool:
    return isinstance(name, str | bytes) and bool(name)


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def shorten(text: str, width: int = 100) -> str:
    """``text``, its middle left out where it is longer than ``width``."""
    half = width // 2 - 2
    return text if len(text) <= width else f"{text[:half]}...{text[-half:]}"


def suggest(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest of ``known``, or an empty string."""
    return did_you_mean(difflib.get_close_matches(word, list(known), n=3, cutoff=0.6))


def did_you_mean(names: Sequence[str]) -> str:
    """``did you mean 'x' or 'y'?``, or an empty string for no names."""
    return "did you mean " + " or ".join(map(repr, names)) + "?" if names else ""


def raise_all(error: type[StepsError], problems: Sequence[Problem]) -> None:
    """Raise ``error`` with every problem, or return when there is none."""
    if problems:
        raise error(problems)
