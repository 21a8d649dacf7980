"""``nemotron-style runs``: what was run, how it went, and why it was run at all."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from nemotron_style.runtime.atomic import read_json
from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.cli.completion import RunWord
from nemotron_style.runtime.cli.options import (
    AsJson,
    Limit,
    choose_limit,
    choose_store,
    command_group,
    open_store,
    print_more,
)
from nemotron_style.runtime.cli.removal import rm_runs
from nemotron_style.runtime.cli.summary import describe_folder, list_results
from nemotron_style.runtime.cli.table import print_json, print_problems, print_table, render_pairs
from nemotron_style.runtime.cli.terminal import write_exactly
from nemotron_style.runtime.errors import Problem, RefError
from nemotron_style.runtime.launch.base import handle_of
from nemotron_style.runtime.launch.local import abandon_attempt
from nemotron_style.runtime.launch.registry import find_launcher
from nemotron_style.runtime.launch.status import read_status, read_statuses, refresh_status
from nemotron_style.runtime.run.attempt import Attempt
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.run.listing import describe_unreadable, find_run, scan_runs
from nemotron_style.runtime.run.plan import Plan
from nemotron_style.runtime.run.state import COMPLETED, RUNNING, JobState
from nemotron_style.runtime.step.progress import format_progress
from nemotron_style.runtime.units import format_age, format_duration, format_number, format_time

app = command_group(
    "List runs, show one, read its log, wait for it, end it, ask why it ran, repeat it, remove it.",
    lazy={
        "rerun": "nemotron_style.runtime.cli.comparison.rerun:app",
        "publish": "nemotron_style.runtime.cli.publish:app",
    },
)
app.callback()(choose_store)
app.command("rm")(rm_runs)


@app.command("list")
def list_all(
    context: typer.Context,
    step: Annotated[str | None, typer.Option(help="Only runs of this step.")] = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first."""
    word = load_catalog().find(step).id if step else ""
    most = choose_limit(limit, as_json=as_json)
    store = open_store(context)
    listed, passed_over, more = scan_runs(store.local, step=word, limit=most)
    runs, silence = [], []
    for run, state in zip(listed, read_statuses(listed), strict=True):
        try:
            if isinstance(state, OSError):
                raise state
            runs.append(describe_folder(run, state))
            silence += [state.reason] if state.stale else []
        except OSError as error:
            passed_over.append(describe_unreadable(run.run_id, error))
    for one in dict.fromkeys(silence):  # a backend that is silent is so for all its runs
        print(f"note: of some runs this is the last known state: {one}", file=sys.stderr)
    if as_json:
        told = {"passed_over": [problem.as_dict() for problem in passed_over]}
        return print_json({"runs": runs, "more": more, **told})
    header = ("RUN", "STEP", "CONFIG", "STATE", "ATTEMPTS", "STARTED", "TOOK", "ARTIFACTS")
    rows, optional = [_row(run) for run in runs], ("STEP", "ATTEMPTS", "ARTIFACTS")
    print_table(rows, header=header, optional=optional, empty=f"no runs in {store.local}")
    print_problems(passed_over, label="note")
    print_more(more, "runs")


@app.command()
def show(context: typer.Context, run: RunWord, as_json: AsJson = False) -> None:
    """Show a run: its plan in short, every attempt, its outputs and figures."""
    found = find_run(open_store(context), run)
    if as_json:
        plan = found.plan.model_dump(mode="json")
        facts = describe_folder(found, read_status(found))
        return print_json({**facts, "plan": plan, "decisions": found.decisions})
    sys.stdout.write("\n".join(_render_sections(found)))


@app.command()
def logs(
    context: typer.Context,
    run: RunWord,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Wait for more.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Of this attempt; else the last.")] = None,
    node: Annotated[int, typer.Option(help="Of this machine of the job.", min=0)] = 0,
) -> None:
    """Print the log of a run's last attempt."""
    found = find_run(open_store(context), run)
    chosen = _choose_attempt(found, attempt)
    log, pauses, most = chosen.log_of(node), 0, PAUSES_BEFORE_TEXT
    if not follow and log.is_file() and found.plan.is_seen:
        write_exactly(sys.stdout, log.read_text(encoding="utf-8", errors="replace"))
    elif follow or chosen.executor != "local":
        for text in find_launcher(chosen.executor).logs(handle_of(chosen), node=node):
            write_exactly(sys.stdout, text)
            sys.stdout.flush()
            pauses, most = (0, 1) if text else (pauses + 1, most)
            if pauses == most and not follow:  # that is all there is by now
                break


@app.command(epilog="\b\nExample:\n  nemotron-style runs wait latest --timeout 3600")
def wait(
    context: typer.Context,
    run: RunWord,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up waiting after this long.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Wait for the end of a run. Exit 0 when it completed, 1 when not, 124 after the timeout."""
    found = find_run(open_store(context), run)
    state = _wait_for_end(found, timeout)
    if as_json:
        print_json(describe_folder(found, state))
    else:
        print(_render_state(found, state))
    if not state.is_final:
        raise typer.Exit(124)
    if state.state != COMPLETED:
        raise typer.Exit(1)


@app.command(epilog="\b\nExample:\n  nemotron-style runs cancel sft-chat-0f3")
def cancel(
    context: typer.Context,
    run: RunWord,
    force: Annotated[
        bool, typer.Option("--force", help="End it at once instead of letting it save.")
    ] = False,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for its end.")
    ] = 30.0,
    abandon: Annotated[
        bool,
        typer.Option("--abandon", help="Declare it lost: its machine is gone, you are sure."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """End a run that is pending or under way; what it saved, the same command continues from."""
    found = find_run(open_store(context), run)
    state, last = refresh_status(found), found.last_attempt
    if last and not state.is_final:
        if abandon:
            abandon_attempt(last, unreachable=state.stale)
        else:
            find_launcher(last.executor).cancel(handle_of(last), force=force)
            _wait_for_end(found, grace)
        state = refresh_status(found)
    if as_json:
        print_json(describe_folder(found, state))
    else:
        print(_render_state(found, state))
    if not state.is_final:
        print(_explain_delay(last), file=sys.stderr)
        raise typer.Exit(1)


POLL_SECONDS = 0.2
PAUSES_BEFORE_TEXT = 5  # a second each, in which a log is fetched


def _wait_for_end(run: RunFolder, timeout: float | None) -> JobState:
    """The state of the run once it is over, or after so many seconds."""
    end = time.monotonic() + timeout if timeout is not None else float("inf")
    while True:
        state = read_status(run)
        if state.is_final or time.monotonic() >= end:
            return state
        time.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0.0)))


def _explain_delay(attempt: Attempt | None) -> str:
    """Why a cancelled run goes on, and what else there is to do."""
    host = attempt.remote_host if attempt else ""
    if not host:
        return "it has not ended yet; --force ends it at once"
    text = f"it has not ended yet; {host} was asked to end it and has not answered. If that machine"
    return f"{text} is gone for certain, --abandon declares the run lost"


def _render_state(run: RunFolder, state: JobState) -> str:
    code = f"exit code {state.exit_code}" if state.exit_code else ""
    first, *_ = state.reason.splitlines() or [""]
    return "  ".join(part for part in (run.run_id, state.state, code, first) if part)


@app.command()
def why(context: typer.Context, run: RunWord, as_json: AsJson = False) -> None:
    """Explain each decision about a run: why it ran, was resumed, or was used again."""
    found = find_run(open_store(context), run)
    if as_json:
        return print_json({"run_id": found.run_id, "decisions": found.decisions})
    print(found.run_id)
    for decision in found.decisions:
        when = format_time(decision["decided"]) if "decided" in decision else "-"
        lines = [f"  {when}  {decision['action']}: {decision['reason']}"]
        print("\n      ".join([*lines, *decision.get("details", [])]))
    if not found.decisions:
        print("  no decision was recorded; it was not started by `steps run`")


def _row(run: dict[str, Any]) -> list[str]:
    first, *others = [output["ref"] for output in run["outputs"].values()] or ["-"]
    started = format_age(run["started"]) if run["started"] else "-"
    took = format_duration(run["seconds"]) if run["seconds"] else "-"
    return [
        *(run["run_id"], run["step"], run["config"], run["state"], str(len(run["attempts"]))),
        *(started, took, f"{first} (+{len(others)})" if others else first),
    ]


def _render_sections(run: RunFolder) -> list[str]:
    facts, plan = describe_folder(run, read_status(run)), run.plan
    head = {name: str(facts[name]) for name in ("step", "config", "state", "path")}
    head |= {name: str(facts[name]) for name in ("reason", "executor", "job") if facts[name]}
    head |= {"took": format_duration(facts["seconds"])} if facts["seconds"] else {}
    head |= {"repeats": plan.rerun_of} if plan.rerun_of else {}
    head |= {"profile": plan.profile, "fingerprint": plan.fingerprint}
    made = facts["outputs"].items()
    outputs = [(slot, "  ".join((one["ref"], one["kind"], one["digest"]))) for slot, one in made]
    refs = [one["ref"] for _, one in made]
    sections = {
        run.run_id: list(head.items()),
        "Inputs": [(planned.slot, f"{planned.kind}  {planned.source}") for planned in plan.inputs],
        "Services": [(name, _describe_service(plan.services[name])) for name in plan.services],
        "Attempts": [_describe_attempt(attempt) for attempt in run.attempts],
        "Outputs": outputs,
        "Figures": [(name, format_number(value)) for name, value in facts["figures"].items()],
        "Results": [*list_results(run, refs), ("report", f"nemotron-style report {run.run_id}")],
    }
    return [f"{name}\n{render_pairs(pairs)}" for name, pairs in sections.items() if pairs]


def _describe_attempt(attempt: Attempt) -> tuple[str, str]:
    record = attempt.record
    words = [attempt.state]
    words += [format_time(record["started"])] if record.get("started") else []
    words += [f"exit code {record['exit_code']}"] if record.get("exit_code") else []
    words += str(record.get("error") or "").splitlines()[:1]
    progress = read_json(attempt.path / "progress.json")
    if progress and attempt.state == RUNNING:
        words.append(format_progress(progress))
    return str(attempt.number), "  ".join([*words, str(attempt.log)])


def _describe_service(service: Plan) -> str:
    """A service that the step had beside it, and where it wrote its log."""
    last = RunFolder(service.record_dir).last_attempt
    return "  ".join([service.step, service.config_name, str(last.log) if last else "not begun"])


def _choose_attempt(run: RunFolder, number: int | None) -> Attempt:
    attempts = {attempt.number: attempt for attempt in run.attempts}
    chosen = number or max(attempts, default=0)
    if chosen not in attempts:
        what = f"has no attempt {number}" if number else "has no attempt yet"
        allowed = ", ".join(map(str, attempts))
        raise RefError(Problem(where=run.run_id, what=what, allowed=allowed))
    return attempts[chosen]
