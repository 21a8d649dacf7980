"""The runs that a request takes, planned and decided about, and nothing done yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.planning.inputs import Adoption, ResolvedInput
from nemotron_style.runtime.planning.reuse import Decision
from nemotron_style.runtime.run.plan import Plan


@dataclass(frozen=True)
class PlannedRun:
    """A plan, what to do about it, and what is known of its inputs (by slot).

    ``manifest`` is that of the step, or of the variant that its config chose. ``pending`` says why
    the plan is not final: the content of an input is not known yet, and may make it another run.
    """

    manifest: Manifest
    plan: Plan
    decision: Decision
    inputs: Mapping[str, ResolvedInput]
    pending: str = ""


@dataclass(frozen=True)
class Pipeline:
    """Runs in the order in which they can be made; the last one makes what was requested.

    ``problems`` are what is wrong with the jobs of a plan that is only shown; no other has any.
    """

    runs: tuple[PlannedRun, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def target(self) -> PlannedRun:
        """The run of the requested step."""
        return self.runs[-1]

    @property
    def adoptions(self) -> tuple[Adoption, ...]:
        """Content to bring into the store before the runs that are not reused."""
        needed = [run for run in self.runs if run.decision.action != "reuse"]
        inputs = [one for run in needed for one in run.inputs.values()]
        return tuple(dict.fromkeys(one.adoption for one in inputs if one.adoption))
