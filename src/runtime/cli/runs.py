"""``nemotron-style runs``: what was run, how it went, and why it was run at all."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemotron_style.runtime.cli.table import print_json, render_pairs, render_table

if TYPE_CHECKING:
    from nemotron_style.runtime.run import Attempt, RunFolder
    from nemotron_style.runtime.store import Store

app = typer.Typer(
    help="List runs, show one, read its log, ask why it ran.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
RunWord = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run id, the beginning of one, an artifact's ref, or latest."
    ),
]


@app.callback()
def choose_store(
    context: typer.Context,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Use this profile's store.")
    ] = None,
) -> None:
    """Remember which profile's store the command below works on."""
    context.obj = profile


@app.command("list")
def list_all(
    context: typer.Context,
    step: Annotated[str | None, typer.Option(help="Only runs of this step.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, the newest first."""
    from nemotron_style.runtime.run import list_runs

    store = _open_store(context)
    step_id = _find_step(step) if step else ""
    runs = [summarise(run) for run in list_runs(store.root, step=step_id)]
    if as_json:
        print_json({"runs": runs})
        return
    header = ("RUN", "STEP", "CONFIG", "STATE", "ATTEMPTS", "STARTED", "SECONDS", "ARTIFACTS")
    sys.stdout.write(render_table([_row(run) for run in runs], header=header))


@app.command()
def show(context: typer.Context, run: RunWord, as_json: AsJson = False) -> None:
    """Show a run: its plan in short, every attempt, its outputs and figures."""
    found = _find(context, run)
    if as_json:
        plan = found.plan.model_dump(mode="json")
        print_json({**summarise(found), "plan": plan, "decisions": found.decisions})
        return
    sys.stdout.write("\n".join(_pages(found)))


@app.command()
def logs(
    context: typer.Context,
    run: RunWord,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Wait for more.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Of this attempt; else the last.")] = None,
) -> None:
    """Print the log of a run's last attempt."""
    found = _choose_attempt(_find(context, run), attempt)
    if not follow:
        sys.stdout.write(found.log.read_text(encoding="utf-8", errors="replace"))
        return
    from nemotron_style.runtime.launch.base import JobHandle
    from nemotron_style.runtime.launch.local import EXECUTOR, LocalLauncher

    handle = JobHandle(EXECUTOR, found.path.parent.parent, found.number)
    for text in LocalLauncher().logs(handle):
        sys.stdout.write(text)
        sys.stdout.flush()


@app.command()
def why(context: typer.Context, run: RunWord, as_json: AsJson = False) -> None:
    """Explain each decision about a run: why it ran, was resumed, or was used again."""
    found = _find(context, run)
    if as_json:
        print_json({"run_id": found.run_id, "decisions": found.decisions})
        return
    print(found.run_id)
    for decision in found.decisions:
        print(f"  {_when(decision.get('decided'))}  {decision['action']}: {decision['reason']}")
        for detail in decision.get("details", []):
            print(f"      {detail}")
    if not found.decisions:
        print("  no decision was recorded; it was not started by `steps run`")


def summarise(run: RunFolder) -> dict[str, Any]:
    """A run as plain data; what its plan does not tell any more is left empty."""
    from nemotron_style.runtime.errors import UsageError

    try:
        plan = run.plan
        step, config = plan.step, plan.config_name
    except UsageError:
        step = config = "?"
    complete = run.outputs or {}
    attempts = run.attempts
    return {
        "run_id": run.run_id,
        "step": step,
        "config": config,
        "state": run.state,
        "started": attempts[0].record.get("started") if attempts else None,
        "seconds": run.seconds,
        "attempts": [attempt.summary for attempt in attempts],
        "outputs": complete.get("outputs", {}),
        "figures": complete.get("figures", {}),
        "path": str(run.path),
    }


def _row(run: dict[str, Any]) -> list[str]:
    refs = " ".join(output["ref"] for output in run["outputs"].values())
    attempts, seconds = str(len(run["attempts"])), f"{run['seconds']:.1f}"
    named = [run["run_id"], run["step"], run["config"], run["state"]]
    return [*named, attempts, _when(run["started"]), seconds, refs or "-"]


def _pages(run: RunFolder) -> list[str]:
    facts, plan = summarise(run), run.plan
    head = {name: str(facts[name]) for name in ("step", "config", "state", "path")}
    head |= {"profile": plan.profile, "fingerprint": plan.fingerprint}
    pages = [f"{run.run_id}\n" + render_pairs(head.items())]
    inputs = [(planned.slot, f"{planned.kind}  {planned.source}") for planned in plan.inputs]
    outputs = [
        (slot, f"{output['ref']}  {output['kind']}  {output['digest']}")
        for slot, output in facts["outputs"].items()
    ]
    figures = [(name, str(value)) for name, value in facts["figures"].items()]
    attempts = [_describe_attempt(attempt) for attempt in run.attempts]
    tables = {"Inputs": inputs, "Attempts": attempts, "Outputs": outputs, "Figures": figures}
    return [*pages, *(f"{name}\n" + render_pairs(rows) for name, rows in tables.items() if rows)]


def _describe_attempt(attempt: Attempt) -> tuple[str, str]:
    record = attempt.record
    told = [attempt.state, _when(record.get("started"))]
    if record.get("exit_code"):
        told.append(f"exit code {record['exit_code']}")
    error = str(record.get("error") or "")
    return str(attempt.number), "  ".join([*told, *error.splitlines()[:1], str(attempt.log)])


def _choose_attempt(run: RunFolder, number: int | None) -> Attempt:
    from nemotron_style.runtime.errors import Problem, RefError

    attempts = {attempt.number: attempt for attempt in run.attempts}
    chosen = number or max(attempts, default=0)
    if chosen not in attempts:
        what = f"has no attempt {number}" if number else "has no attempt yet"
        allowed = ", ".join(map(str, attempts))
        raise RefError(Problem(where=run.run_id, what=what, allowed=allowed))
    return attempts[chosen]


def _find(context: typer.Context, word: str) -> RunFolder:
    from nemotron_style.runtime.run import find_run

    return find_run(_open_store(context), word)


def _find_step(word: str) -> str:
    from nemotron_style.runtime.catalog import load_catalog

    return load_catalog().find(word).id


def _open_store(context: typer.Context) -> Store:
    from nemotron_style.runtime.profile import load_profile
    from nemotron_style.runtime.project import find_project_root
    from nemotron_style.runtime.store import Store, default_root

    profile = load_profile(context.obj, project_root=find_project_root(Path.cwd()))
    return Store(default_root(profile.store))


def _when(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "-"
    return datetime.fromtimestamp(seconds, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
