"""The command line: ``nemotron-style``.

Each group of commands is a module that is imported when it is used. Exit codes: 0 done, 1 the
step failed, 2 a mistake in what was given, 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, ClassVar

import typer
from typer.main import get_command

from nemotron_style.runtime.cli import fast_start  # noqa: F401
from nemotron_style.runtime.cli.lazy import LazyGroup
from nemotron_style.runtime.cli.table import print_json, print_problems
from nemotron_style.runtime.cli.terminal import (
    discard_output,
    open_standard_files,
    visible_output,
)
from nemotron_style.runtime.errors import (
    OutputError,
    Problem,
    StepsError,
    UsageError,
    did_you_mean,
    explain_system_error,
    raise_all,
    suggest,
)
from nemotron_style.runtime.secrets.redact import redacted_output
from nemotron_style.runtime.secrets.reject import find_argument_secrets

PROGRAM = "nemotron-style"
INTERRUPTED = 130


class Program(LazyGroup):
    """The top of the command line."""

    lazy: ClassVar = {
        "steps": "nemotron_style.runtime.cli.steps:app",
        "runs": "nemotron_style.runtime.cli.runs:app",
        "artifacts": "nemotron_style.runtime.cli.artifacts:app",
        "profiles": "nemotron_style.runtime.cli.profiles:app",
        "report": "nemotron_style.runtime.cli.report:app",
    }


app = typer.Typer(
    cls=Program,
    name=PROGRAM,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="""\b
Start here:
  nemotron-style steps list                    what there is
  nemotron-style steps show sft/chat           what a step needs and makes
  nemotron-style steps run sft/chat -c tiny    run the real code in small
  nemotron-style artifacts list                what was made
  nemotron-style report latest                 all about the last run, as one page to show""",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Align language models step by step; every model keeps a record of what made it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; a user's mistake never raises.

    Nothing is printed but through filters that mask secrets and write control characters out.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    open_standard_files()
    stdout, stderr = sys.stdout, sys.stderr
    if stdout is None:
        print("error: standard output: is closed; send it to a file, or /dev/null", file=stderr)
        return 2
    try:
        with redacted_output(stdout, stderr), visible_output():
            return _run(words)
    except OutputError as error:
        discard_output(stdout)
        if not error.was_left:
            with suppress(OSError):
                print(f"error: {error}", file=stderr, flush=True)
        return error.exit_code


def _run(words: list[str]) -> int:
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        raise_all(UsageError, list(find_argument_secrets(words)))
        outcome = get_command(app).main(args=words, prog_name=PROGRAM, standalone_mode=False)
    except OutputError:
        raise
    except StepsError as error:
        return _report(error.problems, error.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _report([Problem(what="interrupted")], INTERRUPTED, as_json)
    except (OSError, UnicodeError, RecursionError) as error:
        return _report([explain_system_error(error)], 2, as_json)
    except Exception as error:
        if hasattr(error, "format_message"):
            return _report_usage(error, words, as_json)
        traceback.print_exc()  # a mistake of ours
        return 1
    return outcome if isinstance(outcome, int) else 0


def _report_usage(error: Any, words: Sequence[str], as_json: bool) -> int:
    """A command line that the parser refused: one sentence, near matches, where to read on."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context else _command_path(words)
    fix = f"see {command} --help"
    if context and context.parent is None and not words[0].startswith("-"):
        fix = _suggest_command(words[0], context) or fix
    option = getattr(error, "option_name", "")
    if context and option:
        known = [name for each in context.command.params for name in each.opts]
        fix = suggest(option, known) or fix
    what = error.format_message().partition(" (Possible")[0].rstrip(".")
    return _report([Problem(where=command, what=what, fix=fix)], 2, as_json)


def _command_path(words: Sequence[str]) -> str:
    """The program and its commands that a command line begins with: not every error knows it."""
    command: Any = get_command(app)
    path = [PROGRAM]
    for word in words:
        command = command.get_command(None, word) if hasattr(command, "get_command") else None
        if command is None:
            break
        path.append(word)
    return " ".join(path)


def _suggest_command(word: str, context: Any) -> str:
    """What a first word that is no command may mean: a step, a command of a group, or a slip."""
    if "/" in word:
        return f"to run a step: {PROGRAM} steps run {word}"
    paths = [_command_path((group, word)) for group in context.command.list_commands(context)]
    if meant := [path for path in paths if path.endswith(f" {word}")]:
        return did_you_mean(meant)
    return suggest(word, context.command.list_commands(context))


def _report(problems: Sequence[Problem], code: int, as_json: bool) -> int:
    if as_json:
        told = [problem.as_dict() for problem in problems]
        print_json({"error": {"exit_code": code, "problems": told}})
    else:
        print_problems(problems)
    return code
