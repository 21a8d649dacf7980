"""A rule of NeMo-RL or NeMo-Gym: where it holds, what breaks upstream, and what finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import View
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version


class Effect(StrEnum):
    """What a broken rule does to a run upstream, worst for the user first."""

    HANGS = "hangs"
    TRAINS_NOTHING = "trains nothing"
    STOPS = "stops"
    SILENT = "silent"


@dataclass(frozen=True)
class Rule:
    """``find`` yields a problem for each place that breaks the rule.

    ``upstream`` says what happens without us, ``says`` what is asked for. The rule holds from
    ``since`` up to and without ``before``. ``is_advice``: a run may break it and be meant so.
    """

    name: str
    effect: Effect
    upstream: str
    says: str
    find: Callable[[View], Iterator[Problem]]
    since: Version
    before: Version | None
    is_advice: bool

    def holds_at(self, version: Version) -> bool:
        """Whether NeMo-RL of this version has the rule."""
        return self.since <= version and (self.before is None or version < self.before)


def rule(
    effect: Effect,
    upstream: str,
    *,
    since: Version = Version.V0_6_0,
    before: Version | None = None,
    advice: bool = False,
) -> Callable[[Callable[[View], Iterator[Problem]]], Rule]:
    """Make a rule of a function; its name and docstring are those of the rule."""

    def make(find: Callable[[View], Iterator[Problem]]) -> Rule:
        name = f"{find.__module__.rpartition('.')[2]}.{find.__name__}"
        says = (find.__doc__ or "").strip()
        return Rule(name, effect, upstream, says, find, since, before, advice)

    return make


def rules_of(module: ModuleType) -> list[Rule]:
    """The rules that a module defines, in its order."""
    return [value for value in vars(module).values() if isinstance(value, Rule)]
