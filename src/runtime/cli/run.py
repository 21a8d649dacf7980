"""``nemotron-style steps run``."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from nemotron_style.runtime.cli.completion import complete_config, complete_profile, complete_step
from nemotron_style.runtime.errors import Problem, StepFailed, UsageError, raise_all, suggest

UNUSABLE_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR)


class RunCommand(TyperCommand):
    """Keeps what stands after ``--`` apart; the parser would mix it with the overrides."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.obj = tuple(args[cut + 1 :])
        rest: list[str] = super().parse_args(ctx, args[:cut])
        return rest


run = typer.Typer(add_completion=False, rich_markup_mode=None)


@run.command(
    "run",
    cls=RunCommand,
    epilog="""\b
Examples:
  nemotron-style steps run sft/chat -c tiny
  nemotron-style steps run sft/chat -c tiny trainer.max_steps=20 -d
  nemotron-style steps run sft/chat -i model=base:v2 -i data=./chats.jsonl""",
)
def run_step(
    invocation: typer.Context,
    step: Annotated[
        str,
        typer.Argument(help="A step's id, an alias, or its tail.", autocompletion=complete_step),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="key=value, +key=value, ++key=value or ~key."
        ),
    ] = None,
    *,
    config: Annotated[
        str,
        typer.Option(
            "-c",
            "--config",
            help="A config of the step, or a YAML file.",
            autocompletion=complete_config,
        ),
    ] = "default",
    attached: Annotated[
        str | None,
        typer.Option(
            "-r",
            "--run",
            metavar="PROFILE",
            help="Run with a profile and wait.",
            autocompletion=complete_profile,
        ),
    ] = None,
    detached: Annotated[
        str | None,
        typer.Option(
            "-b",
            "--batch",
            metavar="PROFILE",
            help="Hand over to a profile and return.",
            autocompletion=complete_profile,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("-d", "--dry-run", help="Show everything, do nothing.")
    ] = False,
    given: Annotated[
        list[str] | None,
        typer.Option("-i", "--input", metavar="SLOT=REF", help="What fills an input."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the artifacts made.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run even if it was run before.")] = False,
    no_upstream: Annotated[
        bool, typer.Option("--no-upstream", help="Do not run steps that make inputs.")
    ] = False,
    force_squash: Annotated[
        bool, typer.Option("--force-squash", help="Make the squashed image anew (Slurm).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run a step, and first whatever makes its inputs; what was made before is used again."""
    from nemotron_style.runtime.planning.request import RunRequest

    words = tuple(overrides or ())
    check_words(words, options=invocation.command.params)
    request = RunRequest(
        step,
        config,
        overrides=words,
        inputs=tuple(given or ()),
        arguments=invocation.obj or (),
        name=name,
        fresh=fresh,
    )
    context = open_world(
        choose_profile(attached, detached),
        upstream=not no_upstream,
        detached=detached is not None,
        force_squash=force_squash,
    )
    if dry_run:
        preview(request, context, as_json=as_json)
    elif context.detached:
        submit(request, context, as_json=as_json)
    else:
        launch(request, context, as_json=as_json)


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


def choose_profile(attached: str | None, detached: str | None) -> Any:
    """The profile that was asked for. Raises ``UsageError`` when both ways were."""
    from nemotron_style.runtime.profiles.model import load_profile

    if attached and detached:
        what = "-r and -b exclude each other: wait for the run, or hand it over"
        raise UsageError(Problem(where="steps run", what=what))
    return load_profile(attached or detached)


def open_world(profile: Any, **how: bool) -> Any:
    """Catalog, store and project of the current directory."""
    from nemotron_style.runtime.catalog.catalog import load_catalog
    from nemotron_style.runtime.paths import find_project_root
    from nemotron_style.runtime.planning.request import PlanContext
    from nemotron_style.runtime.store.store import Store, default_root

    workdir = Path(profile.workdir).absolute() if profile.workdir else None
    return PlanContext(
        catalog=load_catalog(),
        store=Store(default_root(profile.store)),
        profile=profile,
        workdir=workdir or find_project_root(Path.cwd()),
        **how,
    )


def preview(request: Any, context: Any, *, as_json: bool) -> None:
    """Print the dry run."""
    from nemotron_style.runtime.cli.table import print_json
    from nemotron_style.runtime.launch.registry import find_launcher
    from nemotron_style.runtime.planning.dry_run import describe_pipeline, render_pipeline
    from nemotron_style.runtime.planning.planner import compile_pipeline
    from nemotron_style.runtime.secrets.reject import refuse_secrets

    pipeline = compile_pipeline(request, context=context)
    compile_plan = find_launcher(context.profile.executor).compile
    text = render_pipeline(pipeline, compile_plan)
    refuse_secrets(text, "the dry run")
    if as_json:
        print_json(describe_pipeline(pipeline, compile_plan))
    else:
        sys.stdout.write(text)


def launch(request: Any, context: Any, *, as_json: bool) -> None:
    """Run, attached, and print the summary."""
    from nemotron_style.runtime.cli.progress import (
        Screen,
        describe_outcomes,
        output_stream,
        render_summary,
    )
    from nemotron_style.runtime.cli.table import print_json
    from nemotron_style.runtime.launch.registry import find_launcher
    from nemotron_style.runtime.planning.runner import execute_pipeline

    screen = Screen(output_stream(as_json=as_json))
    with explain_disk(context.store.root):
        pipeline = compile_reserved(request, context)
        launcher = find_launcher(context.profile.executor)
        outcomes = execute_pipeline(pipeline, launcher=launcher, watcher=screen)
    if as_json:
        print_json(describe_outcomes(outcomes))
    else:
        sys.stdout.write("\n" + render_summary(outcomes))


def submit(request: Any, context: Any, *, as_json: bool) -> None:
    """Hand everything over, print what was submitted and how to watch it, and return."""
    from nemotron_style.runtime.cli.progress import describe_submissions, render_submissions
    from nemotron_style.runtime.cli.table import print_json
    from nemotron_style.runtime.launch.registry import find_launcher
    from nemotron_style.runtime.planning.runner import submit_pipeline

    with explain_disk(context.store.root):
        pipeline = compile_reserved(request, context)
        submissions = submit_pipeline(pipeline, launcher=find_launcher(context.profile.executor))
    if as_json:
        print_json(describe_submissions(submissions))
    else:
        sys.stdout.write(render_submissions(submissions))


def compile_reserved(request: Any, context: Any) -> Any:
    """The pipeline; with ``--fresh``, its folder is made here, so that no two get the same one."""
    from nemotron_style.runtime.planning.planner import compile_pipeline
    from nemotron_style.runtime.run.folder import RunFolder

    while True:
        pipeline = compile_pipeline(request, context=context)
        plan = pipeline.target.plan
        if not request.fresh or RunFolder(plan.record_dir).reserve(plan):
            return pipeline


@contextmanager
def explain_disk(store: Path) -> Iterator[None]:
    """Turn what a disk refuses into a message about the store."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNUSABLE_DISK:
            raise
        where, fix = f"store {store}", "choose another with $NEMOTRON_STYLE_HOME"
        raise StepFailed(Problem(where=where, what=str(error), fix=fix)) from None
