"""``nemotron-style steps run``."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from nemotron_style.runtime.catalog.catalog import load_catalog
from nemotron_style.runtime.cli.completion import (
    complete_config,
    complete_key,
    complete_profile,
    complete_slot,
    complete_step,
)
from nemotron_style.runtime.cli.options import AsJson
from nemotron_style.runtime.cli.progress import Screen
from nemotron_style.runtime.cli.summary import (
    describe_outcomes,
    describe_submissions,
    print_submissions,
    print_summary,
)
from nemotron_style.runtime.cli.table import print_json
from nemotron_style.runtime.cli.terminal import write_exactly
from nemotron_style.runtime.errors import Problem, StepFailed, UsageError, raise_all, suggest
from nemotron_style.runtime.launch.registry import find_launcher
from nemotron_style.runtime.planning.dry_run import (
    compile_requests,
    describe_pipeline,
    render_pipeline,
)
from nemotron_style.runtime.planning.pipeline import Pipeline
from nemotron_style.runtime.planning.planner import compile_pipeline
from nemotron_style.runtime.planning.request import PlanContext, RunRequest, open_context
from nemotron_style.runtime.planning.runner import execute_pipeline, submit_pipeline
from nemotron_style.runtime.profiles.model import Profile, load_profile
from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.secrets.reject import reject_secrets

UNUSABLE_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR)

StepWord = Annotated[
    str, typer.Argument(help="A step's id, an alias, or its tail.", autocompletion=complete_step)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="key=value, +key=value, ++key=value or ~key.",
        autocompletion=complete_key,
    ),
]
Config = Annotated[
    str,
    typer.Option(
        "-c",
        "--config",
        help="A config of the step, or a YAML file.",
        autocompletion=complete_config,
    ),
]
Attached = Annotated[
    str | None,
    typer.Option(
        "-r",
        "--run",
        metavar="PROFILE",
        help="Run with a profile and wait.",
        autocompletion=complete_profile,
    ),
]
Detached = Annotated[
    str | None,
    typer.Option(
        "-b",
        "--batch",
        metavar="PROFILE",
        help="Submit with a profile and return.",
        autocompletion=complete_profile,
    ),
]
DryRun = Annotated[bool, typer.Option("-d", "--dry-run", help="Show everything, do nothing.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "-i",
        "--input",
        metavar="SLOT=REF",
        help="What fills an input.",
        autocompletion=complete_slot,
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the artifacts made.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run even if it was run before.")]
NoUpstream = Annotated[
    bool, typer.Option("--no-upstream", help="Do not run steps that make inputs.")
]
ForceSquash = Annotated[
    bool, typer.Option("--force-squash", help="Make a new squashed image (Slurm).")
]


class RunCommand(TyperCommand):
    """Keeps what stands after ``--`` apart; the parser would mix it with the overrides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.obj = tuple(args[cut + 1 :])
        if ctx.resilient_parsing and args and args[-1].startswith("-"):
            args = args[:-1]  # an option whose value is being completed: nothing would be parsed
            cut = min(cut, len(args))
        rest: list[str] = super().parse_args(ctx, args[:cut])
        return rest


run = typer.Typer(add_completion=False, rich_markup_mode=None)


@run.command(
    "run",
    cls=RunCommand,
    epilog="""\b
Examples:
  nemotron-style steps run sft/chat -c tiny
  nemotron-style steps run sft/chat -c tiny trainer.sft.max_steps=20 -d
  nemotron-style steps run sft/chat -i model=base:v2 -i data=./chats.jsonl""",
)
def run_step(
    invocation: typer.Context,
    step: StepWord,
    overrides: Overrides = None,
    *,
    config: Config = "default",
    attached: Attached = None,
    detached: Detached = None,
    dry_run: DryRun = False,
    inputs: Inputs = None,
    name: Name = None,
    fresh: Fresh = False,
    no_upstream: NoUpstream = False,
    force_squash: ForceSquash = False,
    as_json: AsJson = False,
) -> None:
    """Run a step, and first whatever makes its inputs; what was made before is used again."""
    check_words(overrides or (), options=invocation.command.params)
    request = RunRequest(
        step,
        config,
        overrides=tuple(overrides or ()),
        inputs=tuple(inputs or ()),
        arguments=invocation.obj or (),
        name=name,
        fresh=fresh,
    )
    profile = choose_profile(attached, detached)
    context = replace(
        open_context(profile, load_catalog(profile_steps=profile.steps)),
        upstream=not no_upstream,
        detached=detached is not None,
        force_squash=force_squash,
        fetch=not dry_run,
        provisional=dry_run,
    )
    if dry_run:
        show_dry_run(request, context, as_json=as_json)
    elif context.detached:
        submit(request, context, as_json=as_json)
    else:
        execute(request, context, as_json=as_json)


def check_words(words: Sequence[str], *, options: Sequence[Any] = ()) -> None:
    """Raise ``UsageError`` for every argument that is not an override."""
    known = [name for option in options for name in option.opts if name.startswith("-")]
    problems = [
        Problem(
            where="steps run",
            what="is neither an option nor key=value, +key=value or ~key",
            got=repr(word),
            fix=suggest(f"--{word.lstrip('-')}", known) or f"did you mean {word}=VALUE?",
        )
        for word in words
        if "=" not in word and not word.startswith("~")
    ]
    raise_all(UsageError, problems)


def choose_profile(attached: str | None, detached: str | None) -> Profile:
    """The profile of ``-r`` or ``-b``. Raises ``UsageError`` when both are given."""
    if attached and detached:
        what = "-r and -b exclude each other: wait for the run, or submit it and return"
        raise UsageError(Problem(where="steps run", what=what))
    return load_profile(attached or detached)


def show_dry_run(request: RunRequest, context: PlanContext, *, as_json: bool) -> None:
    """Print what would be done, then what stands in the way of it."""
    pipeline = compile_pipeline(request, context=context)
    launcher = find_launcher(context.profile.executor)
    requests = compile_requests(pipeline, launcher, reused=as_json)
    text = render_pipeline(pipeline, requests)
    reject_secrets(text, "the dry run")
    if as_json:
        print_json(describe_pipeline(pipeline, requests))
        if pipeline.problems:
            raise typer.Exit(UsageError.exit_code)
    else:
        write_exactly(sys.stdout, text)
        raise_all(UsageError, pipeline.problems)


def execute(request: RunRequest, context: PlanContext, *, as_json: bool) -> None:
    """Run everything, show its progress, and print the summary."""
    # Standard output belongs to the document, where one is wanted.
    stream = sys.stderr if as_json else sys.stdout
    with explain_disk(context.store.local), Screen(stream) as screen:
        pipeline = compile_reserved(request, context)
        launcher = find_launcher(context.profile.executor)
        outcomes = execute_pipeline(pipeline, launcher=launcher, watcher=screen)
    if as_json:
        print_json(describe_outcomes(outcomes))
    else:
        print()
        print_summary(outcomes, context.catalog)


def submit(request: RunRequest, context: PlanContext, *, as_json: bool) -> None:
    """Submit everything, print what was submitted and how to watch it, and return."""
    with explain_disk(context.store.local):
        pipeline = compile_reserved(request, context)
        launcher = find_launcher(context.profile.executor)
        submissions = submit_pipeline(pipeline, launcher=launcher)
    if as_json:
        print_json(describe_submissions(submissions))
    else:
        print_submissions(submissions)


def compile_reserved(request: RunRequest, context: PlanContext) -> Pipeline:
    """The pipeline; with ``--fresh``, the folder of the new generation is made here.

    Two commands at the same time must not get the same one, so a taken folder means plan again.
    """
    while True:
        pipeline = compile_pipeline(request, context=context)
        plan = pipeline.target.plan
        if not request.fresh or RunFolder(plan.record_dir).reserve(plan):
            return pipeline


@contextmanager
def explain_disk(store: Path) -> Iterator[None]:
    """Turn an error of the store's disk into a message about the store."""
    try:
        yield
    except OSError as error:
        # Without a name it is a write that failed, and nearly all of those are the store's.
        path = Path(os.fsdecode(error.filename or store))
        of_store = path.is_relative_to(store) or store.is_relative_to(path)
        if error.errno not in UNUSABLE_DISK or not of_store:
            raise
        where, fix = f"store {store}", "choose another with $NEMOTRON_STYLE_HOME"
        raise StepFailed(Problem(where=where, what=str(error), fix=fix)) from None
