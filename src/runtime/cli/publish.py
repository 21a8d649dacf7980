"""``nemotron-style runs publish``: tell others about a run that is over."""

from __future__ import annotations

from typing import Annotated

import typer

from nemotron_style.runtime.cli.completion import RunWord
from nemotron_style.runtime.cli.options import AsJson, open_store
from nemotron_style.runtime.cli.table import print_json
from nemotron_style.runtime.errors import Problem, UsageError
from nemotron_style.runtime.launch.status import refresh_status
from nemotron_style.runtime.run.listing import find_run
from nemotron_style.runtime.worker.publish import publish as publish_run

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog="\b\nExamples:\n  nemotron-style runs publish latest --to mlflow"
    "\n  nemotron-style runs publish latest --to events.ndjson"
)
def publish(
    context: typer.Context,
    run: RunWord,
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="mlflow, wandb, openlineage (as OPENLINEAGE_URL says), the URL of an "
            "OpenLineage server, or a file for its events that ends in .ndjson.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Tell a tracker about a run that is over, or send it as events of OpenLineage."""
    store = open_store(context)
    found = find_run(store, run)
    state = refresh_status(found)
    if not state.is_final:
        fix = f"nemotron-style runs wait {found.run_id}"
        problem = Problem(where=found.run_id, what="is not over yet", got=state.state, fix=fix)
        raise UsageError(problem)
    where = publish_run(found, state, to, store)
    if as_json:
        return print_json({"run_id": found.run_id, "to": to, "where": where})
    print(f"{found.run_id}  published to {where}")
