"""``nemotron-style steps``: list and show; ``run`` has a module of its own."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import typer

from nemotron_style.runtime.catalog.catalog import Catalog, load_catalog
from nemotron_style.runtime.catalog.manifest import Manifest, Slot
from nemotron_style.runtime.cli.completion import complete_category, complete_kind, complete_step
from nemotron_style.runtime.cli.lazy import LazyGroup
from nemotron_style.runtime.cli.table import (
    first_sentence,
    print_json,
    render_pairs,
    render_table,
    render_tree,
    tell,
)
from nemotron_style.runtime.errors import Problem, StepsError, UsageError, suggest
from nemotron_style.runtime.validation import flatten, show_value


class StepsGroup(LazyGroup):
    """``steps``, with ``run`` imported only when it is used."""

    lazy: ClassVar = {"run": "nemotron_style.runtime.cli.run:run"}


app = typer.Typer(
    cls=StepsGroup,
    help="Find a step, learn what it needs, run it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command(
    "list",
    epilog="""\b
Examples:
  nemotron-style steps list --category sft
  nemotron-style steps list --produces reward_model
  nemotron-style steps list --consumes checkpoint_megatron --tree""",
)
def list_steps(
    category: Annotated[
        str | None,
        typer.Option(help="Only this category.", autocompletion=complete_category),
    ] = None,
    consumes: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Only steps that can use an artifact of this kind.",
            autocompletion=complete_kind,
        ),
    ] = None,
    produces: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Only steps that make something usable as this kind.",
            autocompletion=complete_kind,
        ),
    ] = None,
    tree: Annotated[bool, typer.Option("--tree", help="Group by category.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the steps, with what goes in and what comes out."""
    catalog = load_catalog()
    steps = select(catalog, category=category, consumes=consumes, produces=produces)
    if as_json:
        broken = {
            name: [problem.as_dict() for problem in problems]
            for name, problems in catalog.broken.items()
        }
        print_json({"steps": [summarise(step) for step in steps], "broken": broken})
        return
    for name, problems in catalog.broken.items():
        tell(problems, label=f"step {name} is left out")
    if not steps:
        print("No step fits.", file=sys.stderr)
    elif tree:
        categories = sorted({step.category for step in steps})
        lines = {
            name: [f"{step.id}: {_flow(step)}" for step in steps if step.category == name]
            for name in categories
        }
        sys.stdout.write(render_tree(lines))
    else:
        header = ("STEP", "TAKES", "MAKES", "WHAT IT DOES")
        sys.stdout.write(render_table([_row(step) for step in steps], header=header))


@app.command(
    "show",
    epilog="""\b
Examples:
  nemotron-style steps show sft/chat
  nemotron-style steps show chat --json""",
)
def show_step(
    step: Annotated[
        str,
        typer.Argument(
            help="A step's id, an alias, or the end of one id.", autocompletion=complete_step
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a step does, needs and makes, its parameters, advice and known errors."""
    catalog = load_catalog()
    manifest = catalog.find(step)
    if as_json:
        print_json(describe(manifest))
    else:
        sys.stdout.write("\n".join(_pages(manifest, catalog)))


def select(
    catalog: Catalog, *, category: str | None, consumes: str | None, produces: str | None
) -> list[Manifest]:
    """The steps that fit every given filter; an unknown category or kind is an error."""
    steps = list(catalog.steps.values())
    categories = sorted({step.category for step in steps})
    if category is not None:
        if category not in categories:
            what, allowed = f"there is no category {category!r}", ", ".join(categories)
            fix = suggest(category, categories)
            raise UsageError(Problem(where="--category", what=what, allowed=allowed, fix=fix))
        steps = [step for step in steps if step.category == category]
    if consumes is not None:
        takers = catalog.consumers(catalog.kinds[consumes].name)
        steps = [step for step in steps if step in takers]
    if produces is not None:
        makers = catalog.producers(catalog.kinds[produces].name)
        steps = [step for step in steps if step in makers]
    return steps


def summarise(step: Manifest) -> dict[str, Any]:
    """A step in a list, as plain data."""
    keep = {"id", "name", "category", "description", "tags", "aliases", "consumes", "produces"}
    return {**step.model_dump(mode="json", include=keep), "configs": list(step.configs)}


def describe(step: Manifest) -> dict[str, Any]:
    """Everything about a step, as plain data."""
    document = step.model_dump(mode="json")
    defaults = _defaults(step)
    for parameter in document["parameters"]:
        parameter["default"] = defaults.get(parameter["name"], parameter["default"])
    examples = [command for command, _ in _examples(step)]
    return {**document, "configs": list(step.configs), "examples": examples}


def _row(step: Manifest) -> tuple[str, str, str, str]:
    takes, makes = _count_kinds(step.consumes), _count_kinds(step.produces)
    return step.id, takes or "-", makes or "-", first_sentence(step.description)


def _count_kinds(slots: Sequence[Slot]) -> str:
    counts = Counter(slot.kind for slot in slots)
    return ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in counts.items())


def _flow(step: Manifest) -> str:
    return " -> ".join(
        ", ".join(f"{slot.name} ({slot.kind})" for slot in slots) or "nothing"
        for slots in (step.consumes, step.produces)
    )


def _pages(step: Manifest, catalog: Catalog) -> Iterator[str]:
    yield f"{step.id} - {step.name}\n\n  {' '.join(step.description.split())}\n"
    if step.aliases:
        yield f"Also called: {', '.join(step.aliases)}\n"
    yield "Takes\n" + render_pairs(_takes(step.consumes, catalog) or [("nothing", "")])
    makes = [(slot.name, _describe_slot(slot)) for slot in step.produces]
    yield "Makes\n" + render_pairs(makes or [("nothing", "It runs until it is stopped.")])
    if step.needs:
        needs = [(need.name, f"{need.step}  {need.description}") for need in step.needs]
        yield "Needs beside it\n" + render_pairs(needs)
    yield "Configs\n" + render_pairs((name, "") for name in step.configs or ("none",))
    if step.parameters:
        yield "Parameters\n" + render_pairs(_parameters(step))
    if step.models:
        yield "Models\n" + render_pairs((model.name, model.description) for model in step.models)
    if step.strategies:
        yield "When ... then ...\n" + render_pairs((s.when, s.then) for s in step.strategies)
    if step.errors:
        yield "Known errors\n" + render_pairs((error.name, error.recovery) for error in step.errors)
    yield "Try\n" + "".join(f"  # {why}\n  {command}\n" for command, why in _examples(step))


def _takes(slots: Sequence[Slot], catalog: Catalog) -> list[tuple[str, str]]:
    pairs = []
    for slot in slots:
        makers = [maker.id for maker in catalog.producers(slot.kind)]
        text = _describe_slot(slot)
        text += f" Made by {', '.join(makers)}." if makers else ""
        pairs.append((slot.name, text))
    return pairs


def _describe_slot(slot: Slot) -> str:
    notes = [slot.kind]
    notes += [] if slot.required else ["optional"]
    notes += [f"config key {slot.config_key}"] if slot.config_key else []
    description = slot.description.strip()
    end = "" if not description or description.endswith((".", "!", "?")) else "."
    return f"[{', '.join(notes)}] {description}{end}".strip()


def _parameters(step: Manifest) -> Iterator[tuple[str, str]]:
    defaults = _defaults(step)
    for parameter in step.parameters:
        default = defaults.get(parameter.name, parameter.default)
        choices = f" One of {', '.join(map(str, parameter.choices))}." if parameter.choices else ""
        yield parameter.name, f"{parameter.description}{choices} [default: {show_value(default)}]"


def _defaults(step: Manifest) -> dict[str, Any]:
    """The values that the default config gives; nothing when that config is not in order."""
    from nemotron_style.runtime.config.resolve import resolve_config

    try:
        return flatten(resolve_config(step, name="default", overrides=()).values)
    except StepsError:
        return {}


def _examples(step: Manifest) -> Iterator[tuple[str, str]]:
    run = f"nemotron-style steps run {step.id}"
    if "tiny" in step.configs:
        yield f"{run} -c tiny", "the real code in small, on this machine"
    inputs = "".join(f" -i {slot.name}=REF" for slot in step.consumes if slot.required)
    yield f"{run} --dry-run{inputs}", "see exactly what would run, and run nothing"
    if step.parameters:
        parameter = step.parameters[0]
        default = _defaults(step).get(parameter.name, parameter.default)
        value = default if isinstance(default, int | float) else "VALUE"
        yield f"{run}{inputs} {parameter.name}={value}", "change a value of the config"
    yield f"{run}{inputs} -b slurm", "hand it to a cluster and return"
