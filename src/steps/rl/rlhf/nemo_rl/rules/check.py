"""All rules at once: what breaks a run, worst first, and what deserves a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_style.runtime.errors import Problem
from nemotron_style.steps.rl.rlhf.nemo_rl.rules import (
    backends,
    batches,
    checkpointing,
    cluster,
    data_rows,
    generation,
    gym_judge,
    gym_script,
    loading,
    loss,
    megatron,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.facts import Facts
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.rule import Effect, Rule, rules_of
from nemotron_style.steps.rl.rlhf.nemo_rl.rules.view import Undecidable, View

SUBJECTS = (
    gym_judge,
    data_rows,
    gym_script,
    cluster,
    batches,
    backends,
    megatron,
    loss,
    generation,
    checkpointing,
    loading,
)
RULES = sorted(
    (rule for subject in SUBJECTS for rule in rules_of(subject)),
    key=lambda rule: list(Effect).index(rule.effect),
)
"""In the order in which problems are told: what hangs, then what stops, then what is silent."""

ROWS_OF_VALIDATION = gym_judge.validation_cohort_fills.name


def check(values: Mapping[str, Any], facts: Facts) -> Iterator[Problem]:
    """What breaks a run of the complete configuration ``values``, what hangs first."""
    for _, problem in find_breaches(values, facts, advice=False):
        yield problem


def check_rows(values: Mapping[str, Any], facts: Facts) -> Iterator[Problem]:
    """What breaks a run in the rows that ``facts`` knows, for the job that has just made them."""
    about_rows = {rule.name for rule in rules_of(data_rows)} | {ROWS_OF_VALIDATION}
    for rule, problem in find_breaches(values, facts, advice=False):
        if rule.name in about_rows:
            yield problem


def advise(values: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    """What a run may do and hardly wants, a sentence each."""
    for _, problem in find_breaches(values, facts, advice=True):
        yield str(problem)


def find_breaches(
    values: Mapping[str, Any], facts: Facts, *, advice: bool
) -> Iterator[tuple[Rule, Problem]]:
    """Each breach with the rule that it breaks."""
    view = View(values, facts)
    for rule in RULES:
        if rule.is_advice is not advice or not rule.holds_at(facts.version):
            continue
        try:
            for problem in rule.find(view):
                yield rule, problem
        except Undecidable:
            continue
