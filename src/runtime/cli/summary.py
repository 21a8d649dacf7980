"""A run as plain data, and what is said at its end: what was made, and where to look next."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nemotron_style.runtime.catalog.catalog import Catalog
from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.catalog.slot import Slot
from nemotron_style.runtime.cli.table import emphasise, print_table, render_pairs
from nemotron_style.runtime.config.model import TITLES
from nemotron_style.runtime.errors import StepsError, UsageError
from nemotron_style.runtime.launch.base import attempt_of
from nemotron_style.runtime.paths import show_path
from nemotron_style.runtime.planning.dry_run import describe_run
from nemotron_style.runtime.planning.runner import Outcome, Submission
from nemotron_style.runtime.run.folder import RunFolder, open_store
from nemotron_style.runtime.run.kept_run import read_outputs
from nemotron_style.runtime.run.plan import Plan, identify, name_run
from nemotron_style.runtime.run.state import COMPLETED, JobState
from nemotron_style.runtime.store.diff import compare_content
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.units import format_duration, format_number

MOST_FIGURES = 9
MOST_STEPS = 3
# What recipes leave for people, in the folder of the run and in their artifacts.
RESULTS = (
    ("plot", ("plots/*.png", "*.png")),
    ("samples", ("samples/*.md", "samples.md")),
    ("samples", ("samples/*.jsonl",)),
    ("report", ("report.md", "results.json", "card.json")),
    ("metrics", ("metrics.jsonl",)),
)


def describe_folder(run: RunFolder, state: JobState) -> dict[str, Any]:
    """A run as plain data; a plan that cannot be read leaves a question mark."""
    try:
        plan: Plan | None = run.plan
    except UsageError:
        plan = None
    complete = run.outputs or {}
    if not complete and plan and state.state == COMPLETED:
        try:
            complete = read_outputs(run, open_store(plan)) or {}
        except StepsError as error:  # its bucket does not answer; what is known here is shown
            print(f"note: what {run.run_id} made is not known here: {error}", file=sys.stderr)
    attempts = run.attempts
    return {
        "run_id": run.run_id,
        "step": plan.step if plan else "?",
        "config": plan.config_name if plan else "?",
        "state": state.state,
        "reason": state.reason,
        "exit_code": state.exit_code,
        "executor": attempts[-1].executor if attempts else None,
        "job": attempts[-1].job.get("id") if attempts else None,
        "remote_host": (attempts[-1].remote_host or None) if attempts else None,
        "last_sign": (attempts[-1].last_sign or None) if attempts else None,
        "started": attempts[0].record.get("started") if attempts else None,
        "seconds": run.seconds,
        "attempts": [attempt.summary for attempt in attempts],
        **{key: complete.get(key, {}) for key in ("outputs", "figures")},
        "trackers": run.trackers,
        "path": str(run.path),
    }


def print_summary(outcomes: Sequence[Outcome], catalog: Catalog) -> None:
    """Print a row a step, the figures and the results of those that ran, and what to do next."""
    header = ("STEP", "CONFIG", "DECISION", "TOOK", "ARTIFACTS")
    print_table([_row(outcome) for outcome in outcomes], header=header)
    target = outcomes[-1]
    shown = [each for each in outcomes if each is target or each.run.decision.action != "reuse"]
    figures, results = [], []
    for outcome in shown:
        refs = [output["ref"] for output in outcome.outputs.values()]
        results += list_results(RunFolder(outcome.run.plan.record_dir), refs)
        chosen = list(outcome.figures.items())[:MOST_FIGURES]
        text = "  ".join(f"{name}={format_number(value)}" for name, value in chosen)
        figures += [(outcome.run.plan.step, text)] if text else []
    sections = {
        "Figures": figures,
        "Made again": [pair for outcome in shown for pair in compare_with_earlier(outcome)],
        "Look at": results,
        "Next": list(suggest_commands(target, catalog)),
    }
    for title, pairs in sections.items():
        if pairs:
            sys.stdout.write(f"\n{emphasise(title)}\n{render_pairs(pairs)}")


def compare_with_earlier(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """What a run with ``--fresh`` made, against what the run before it made of the same plan."""
    plan = outcome.run.plan
    if not plan.identity.get("generation") or outcome.run.decision.action == "reuse":
        return
    before = {**plan.identity, "generation": plan.identity["generation"] - 1}
    folder = RunFolder(plan.record_dir.with_name(name_run(plan.step, identify(before))))
    store = open_store(plan)
    for slot, output in outcome.outputs.items():
        earlier = (folder.outputs or {}).get("outputs", {}).get(slot)
        ours, theirs = store.find(output["ref"]), store.find(earlier["ref"]) if earlier else None
        if ours and theirs:
            yield slot, f"{compare_content(ours, theirs)}; the other is {theirs.ref}"


def _row(outcome: Outcome) -> list[str]:
    plan = outcome.run.plan
    first, *others = [output["ref"] for output in outcome.outputs.values()] or ["-"]
    refs = f"{first} (+{len(others)})" if others else first
    took = format_duration(outcome.seconds) if outcome.seconds else "-"
    return [plan.step, plan.config_name, outcome.run.decision.action, took, refs]


def list_results(run: RunFolder, refs: Sequence[str]) -> list[tuple[str, str]]:
    """Plots, samples, reports and metrics of a run as (what it is, path); how to see them drawn."""
    store = open_store(run.plan) if run.exists else Store(run.path.parent.parent)
    artifacts = [artifact for ref in refs if (artifact := store.find(ref))]
    results = []
    for label, patterns in RESULTS:
        for folder in (run.path, *filter(None, map(store.find_local, artifacts))):
            results += [(label, show_path(path)) for path in _find_newest(folder, patterns)]
    if (board := run.path / "tensorboard").is_dir():
        results.append(("TensorBoard", f"tensorboard --logdir {shlex.quote(show_path(board))}"))
    for name, one in run.trackers.items():
        results.append((TITLES.get(name, name), f"run {one['id']}, {one['where']}"))
    return results


def _find_newest(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Every file of the first pattern that fits; of numbered ones, only the last."""
    for pattern in patterns:
        if paths := sorted(folder.glob(pattern)):
            return paths[-1:] if pattern.startswith("samples/") else paths
    return []


def suggest_commands(outcome: Outcome, catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Commands that go on from what a run made, each as (what it does, command)."""
    output = next(iter(outcome.outputs.values()), None)
    if output is None:
        return
    ref, plan = output["ref"], outcome.run.plan
    yield "trace it", f"nemotron-style artifacts lineage {ref}"
    yield "show it", f"nemotron-style report {ref}"
    given = {one.kind for one in plan.inputs}
    converts = catalog.find(plan.step).category == "convert"
    untrained = converts and output["kind"] not in given
    fits = [
        (at, step, slot)
        for step in catalog.consumers(output["kind"])
        for at, slot in enumerate(step.consumes)
        if step.id != plan.step
        and catalog.kinds.accepts(slot.kind, output["kind"])
        and not (converts and given & {made.kind for made in step.produces})  # back again
    ]

    def rank(fit: tuple[int, Manifest, Slot]) -> tuple[Any, ...]:
        # Steps that are about this kind take it first; and a model is measured before it is used,
        # but one that was only converted is trained.
        at, step, slot = fit
        if untrained:
            return step.category != "sft", at
        return not slot.required, at, step.category != "eval"

    fits.sort(key=rank)
    suggested: dict[str, tuple[str, str]] = {}
    for _, step, slot in fits:
        words = f"nemotron-style steps run {step.id}"
        if plan.config_name in step.configs and plan.config_name != "default":
            words += f" -c {plan.config_name} -i {slot.name}={ref}"
        else:
            words += f" -i {slot.name}={ref}"
            for other in step.consumes:
                needed = other.required or other.name == "model"  # or sizes of a new one
                if needed and other is not slot:
                    words += f" -i {other.name}={_find_start(plan, other, catalog) or 'REF'}"
        for key, value in slot.when.items():  # without which there is no such slot
            words += f" {key}={value if isinstance(value, str) else json.dumps(value)}"
        suggested.setdefault(step.id, (step.category, words))
    yield from list(suggested.values())[:MOST_STEPS]


def _find_start(plan: Plan, slot: Slot, catalog: Catalog) -> str:
    """The model that a run began with, as a ref, where a slot takes it; else an empty string."""
    for one in plan.inputs:
        if one.slot == "model" and catalog.kinds.accepts(slot.kind, one.kind):
            return open_store(plan).resolve(one.source).ref
    return ""


def describe_outcomes(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The outcomes as plain data, for ``--json``."""
    runs = [
        {
            **describe_run(outcome.run),
            "seconds": outcome.seconds,
            "outputs": outcome.outputs,
            "figures": outcome.figures,
        }
        for outcome in outcomes
    ]
    return {"dry_run": False, "runs": runs}


def print_submissions(submissions: Sequence[Submission]) -> None:
    """Print a row a run, and the commands that watch, await and end the last one."""
    notes = dict.fromkeys(note for each in submissions for note in each.run.plan.notes)
    for note in notes:
        print(f"note: {note}")
    rows = []
    for each in submissions:
        plan, job = each.run.plan, attempt_of(each.handle).job if each.handle else {}
        row = [plan.step, plan.config_name, each.run.decision.action, plan.run_id]
        rows.append([*row, str(job.get("id", "-")), each.state.state])
    print_table(rows, header=("STEP", "CONFIG", "DECISION", "RUN", "JOB", "STATE"))
    last = submissions[-1]
    if last.handle:
        ways = {"watch": "logs -f", "wait": "wait", "end": "cancel"}
        run_id = last.run.plan.run_id
        pairs = [(way, f"nemotron-style runs {words} {run_id}") for way, words in ways.items()]
        sys.stdout.write("\n" + render_pairs(pairs))


def describe_submissions(submissions: Sequence[Submission]) -> dict[str, Any]:
    """The submissions as plain data, for ``--json``."""
    runs = [
        {
            **describe_run(each.run),
            "executor": each.handle.executor if each.handle else None,
            "attempt": each.handle.attempt if each.handle else None,
            "job": attempt_of(each.handle).job.get("id") if each.handle else None,
            "state": each.state.state,
            "path": str(each.run.plan.record_dir),
        }
        for each in submissions
    ]
    return {"dry_run": False, "detached": True, "runs": runs}
