"""``nemotron-style runs rerun``: do a run again, and say whether the same came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.catalog.kinds import Kinds
from nemotron_style.runtime.cli.comparison.content import (
    describe_findings,
    find_content_differences,
    render_findings,
)
from nemotron_style.runtime.cli.completion import RunWord, complete_profile
from nemotron_style.runtime.cli.options import AsJson, open_store
from nemotron_style.runtime.cli.progress import Screen
from nemotron_style.runtime.cli.run import explain_disk
from nemotron_style.runtime.cli.table import emphasise, print_json
from nemotron_style.runtime.cli.terminal import one_line
from nemotron_style.runtime.launch.registry import find_launcher
from nemotron_style.runtime.planning.pipeline import Pipeline
from nemotron_style.runtime.planning.rerun import Rerun, plan_rerun
from nemotron_style.runtime.planning.runner import Outcome, execute_pipeline
from nemotron_style.runtime.profiles.model import load_profile
from nemotron_style.runtime.run.kept_run import find_complete_run
from nemotron_style.runtime.store.content.finding import Finding
from nemotron_style.runtime.store.diff import Difference, compare
from nemotron_style.runtime.store.record import Artifact, Record
from nemotron_style.runtime.store.store import Store

SAME, SAME_WEIGHTS = "bit-identical", "weights bit-identical"
DIFFERS, NOT_MADE, MADE_TOO = "differs", "not made this time", "not made the first time"
# What the surroundings of a run are in a record.
SURROUNDINGS = ("code", "environment", "hardware")

Place = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="PROFILE",
        help="Run it with this profile instead of the first one's.",
        autocompletion=complete_profile,
    ),
]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Verdict:
    """What became of one output: SAME, SAME_WEIGHTS, DIFFERS (in ``findings``), or one is missing.

    ``note`` says why there are no findings of an output that differs.
    """

    slot: str
    verdict: str
    first: str | None
    again: str | None
    findings: Sequence[Finding] = ()
    note: str = ""

    @property
    def is_same(self) -> bool:
        """Whether a difference would have been seen."""
        return self.verdict in (SAME, SAME_WEIGHTS)


@app.command(epilog="\b\nExample:\n  nemotron-style runs rerun sft-steerlm2-tiny:v1")
def rerun(
    context: typer.Context, run: RunWord, *, profile: Place = None, as_json: AsJson = False
) -> None:
    """Repeat a run from its sealed plan. Exit 0 when what it makes is bit-identical, else 1.

    Config, inputs and code are those of the first run, whose outputs stay what they are; the
    repetition makes artifacts of its own, called NAME.rerun.
    """
    store = open_store(context)
    first = find_complete_run(store, run)
    chosen = load_profile(profile) if profile is not None else None
    catalog = load_catalog(profile_steps=chosen.steps if chosen else ())
    stream = sys.stderr if as_json else sys.stdout
    with explain_disk(store.local), Screen(stream) as screen:
        repetition = plan_rerun(first, store=store, catalog=catalog, profile=chosen)
        for line in repetition.surroundings:
            screen.warn(f"other than then: {line}")
        launcher = find_launcher(repetition.run.plan.executor)
        pipeline = Pipeline((repetition.run,))
        [outcome] = execute_pipeline(pipeline, launcher=launcher, watcher=screen)
    verdicts = list(judge(repetition, outcome, store, catalog.kinds))
    changes = compare_surroundings(repetition, outcome, store)
    if as_json:
        print_json(describe(first.run_id, repetition, verdicts, changes))
    else:
        print("\n" + "\n".join(one_line(line) for line in render(verdicts, changes)))
    if not all(verdict.is_same for verdict in verdicts):
        raise typer.Exit(1)


def judge(repetition: Rerun, outcome: Outcome, store: Store, kinds: Kinds) -> Iterator[Verdict]:
    """The verdict on every output of either run."""
    for slot in {**repetition.outputs, **outcome.outputs}:
        record = repetition.outputs.get(slot)
        again = store.find(outcome.outputs[slot]["ref"]) if slot in outcome.outputs else None
        if record is None or again is None:
            verdict = MADE_TOO if record is None else NOT_MADE
            first_ref, again_ref = (known.ref if known else None for known in (record, again))
            yield Verdict(slot, verdict, first_ref, again_ref)
        else:
            yield judge_output(slot, record, again, store, kinds)


def judge_output(slot: str, record: Record, again: Artifact, store: Store, kinds: Kinds) -> Verdict:
    """The verdict on one output; of a first one that was removed there is the record to go by."""
    if record.digest == again.digest:
        return Verdict(slot, SAME, record.ref, again.ref)
    first = store.find(record.ref)
    weights = [facts.get("weights_digest") for facts in (record.facts, again.facts)]
    has_same_weights = weights[0] is not None and weights[0] == weights[1]
    if first is None:
        note = f"{record.ref} was removed: only its record can be compared"
        return Verdict(slot, DIFFERS, record.ref, again.ref, note=note)
    findings = find_content_differences(first, again, store=store, kinds=kinds)
    # Files of weights depend on how many processes wrote them; any other file must be the same.
    others = [finding for finding in findings if not finding.path.startswith("weights (")]
    verdict = SAME_WEIGHTS if has_same_weights and not others else DIFFERS
    return Verdict(slot, verdict, first.ref, again.ref, findings)


def compare_surroundings(repetition: Rerun, outcome: Outcome, store: Store) -> list[Difference]:
    """In what the two runs had other software, hardware or code around them, by their records."""
    for slot, output in outcome.outputs.items():
        before = store.find(repetition.outputs[slot].ref) if slot in repetition.outputs else None
        after = store.find(output["ref"])
        if before and after:
            return [each for each in compare(before, after) if each.section in SURROUNDINGS]
    return []


def render(verdicts: Sequence[Verdict], changes: Sequence[Difference]) -> Iterator[str]:
    """The verdicts, where the outputs differ, and what else was different."""
    same = all(verdict.is_same for verdict in verdicts)
    yield emphasise("The same came of it" if same else "Not the same came of it")
    for verdict in verdicts:
        pair = f"{verdict.first or '-'} and {verdict.again or '-'}"
        yield f"  {verdict.slot}: {verdict.verdict}: {pair}"
        yield from (f"    {line}" for line in render_findings(verdict.findings))
        if verdict.note:
            yield f"      {verdict.note}"
    if changes:
        yield emphasise("What was different around it")
        for each in changes:
            sides = ("(absent)" if one is None else one for one in (each.left, each.right))
            yield f"  {each.key}: {' -> '.join(map(str, sides))}"


def describe(
    first: str, repetition: Rerun, verdicts: Sequence[Verdict], changes: Sequence[Difference]
) -> Mapping[str, Any]:
    """The verdicts as plain data."""
    return {
        "rerun_of": first,
        "run_id": repetition.run.plan.run_id,
        "identical": all(verdict.is_same for verdict in verdicts),
        "outputs": {
            verdict.slot: {
                "verdict": verdict.verdict,
                "first": verdict.first,
                "again": verdict.again,
                "content": describe_findings(verdict.findings),
                **({"note": verdict.note} if verdict.note else {}),
            }
            for verdict in verdicts
        },
        "different_around_it": [vars(each) for each in changes],
    }
