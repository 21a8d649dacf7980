"""``nemotron-style steps``: list and show; ``run`` has a module of its own."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Annotated, Any

import typer

from nemotron_style.runtime.catalog.catalog import Catalog, load_catalog
from nemotron_style.runtime.catalog.manifest import Manifest
from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest
from nemotron_style.runtime.catalog.slot import Slot
from nemotron_style.runtime.cli.completion import complete_category, complete_kind, complete_step
from nemotron_style.runtime.cli.options import AsJson, command_group
from nemotron_style.runtime.cli.table import (
    NO_BREAK,
    PAGE,
    choose_width,
    emphasise,
    print_json,
    print_problems,
    print_tree,
    render_pairs,
    wrap_text,
)
from nemotron_style.runtime.errors import Problem, StepsError, UsageError, suggest
from nemotron_style.runtime.validation import flatten, get_key, show_value

app = command_group(
    "Find a step, learn what it needs, run it.",
    lazy={"run": "nemotron_style.runtime.cli.run:run"},
)

Category = Annotated[
    str | None, typer.Option(help="Only this category.", autocompletion=complete_category)
]
Consumes = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Only steps that can use an artifact of this kind.",
        autocompletion=complete_kind,
    ),
]
Produces = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Only steps that make something usable as this kind.",
        autocompletion=complete_kind,
    ),
]
StepWord = Annotated[
    str,
    typer.Argument(
        help="A step's id, an alias, or the end of one id.", autocompletion=complete_step
    ),
]


@app.command(
    "list",
    epilog="""\b
Examples:
  nemotron-style steps list --category sft
  nemotron-style steps list --produces reward_model
  nemotron-style steps list --consumes checkpoint_megatron --tree""",
)
def list_steps(
    category: Category = None,
    consumes: Consumes = None,
    produces: Produces = None,
    tree: Annotated[bool, typer.Option("--tree", help="Show every slot, as a tree.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the steps, with what they do, what goes in and what comes out."""
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
        print_problems(problems, label=f"step {name} is left out")
    groups = groupby(sorted(steps, key=lambda step: step.category), lambda step: step.category)
    if not steps:
        print("No step fits.", file=sys.stderr)
    elif tree:
        flows = {name: [f"{step.id}: {_flow(step)}" for step in group] for name, group in groups}
        print_tree(flows)
    else:
        column = max(len(step.id) for step in steps) + 2
        sys.stdout.write("\n".join(_render_group(*group, column=column) for group in groups))


@app.command(
    "show",
    epilog="""\b
Examples:
  nemotron-style steps show sft/chat
  nemotron-style steps show chat --json""",
)
def show_step(step: StepWord, as_json: AsJson = False) -> None:
    """Show what a step does, needs and makes, its parameters, advice and known errors."""
    catalog = load_catalog()
    manifest = catalog.find(step)
    if as_json:
        print_json(describe(manifest))
    else:
        sys.stdout.write("\n".join(_render_sections(manifest, catalog)))


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
    document = step.model_dump(mode="json", exclude={"left_out"})
    form, defaults = _read_default(step)
    for parameter in document["parameters"]:
        parameter["default"] = defaults.get(parameter["name"], parameter["default"])
    examples = [command for command, _ in _examples(form, defaults)]
    return {**document, "configs": list(step.configs), "examples": examples}


def _render_group(category: str, steps: Iterator[Manifest], *, column: int) -> str:
    """A heading, and each step at the start of a line; what it does stands beside it, wrapped."""
    width = min(choose_width(in_pipe=PAGE), PAGE)
    room = max(width - column, 20)
    text = f"{emphasise(category.upper())}\n"
    for step in steps:
        lines = textwrap.wrap(_first_sentence(step.description), room, break_on_hyphens=False)
        kinds = " -> ".join(_count_kinds(slots) for slots in (step.consumes, step.produces))
        lines += textwrap.wrap(f"[{kinds}]", room, break_on_hyphens=False)
        text += emphasise(step.id) + " " * (column - len(step.id)) + lines[0] + "\n"
        text += "".join(f"{' ' * column}{line}\n" for line in lines[1:])
    return text


def _first_sentence(text: str) -> str:
    """The first sentence of a description, on one line."""
    head, dot, _ = " ".join(text.split()).partition(". ")
    return head + dot.strip()


def _count_kinds(slots: Sequence[Slot]) -> str:
    counts = Counter(slot.kind for slot in slots)
    kinds = [f"{count} {kind}" if count > 1 else kind for kind, count in counts.items()]
    return ", ".join(kinds) or "nothing"


def _name_kinds(slot: Slot) -> str:
    return " or ".join([slot.kind, *slot.also]) + ("" if slot.required else ", optional")


def _flow(step: Manifest) -> str:
    return " -> ".join(
        ", ".join(f"{slot.name} ({_name_kinds(slot)})" for slot in slots) or "nothing"
        for slots in (step.consumes, step.produces)
    )


def _render_sections(step: Manifest, catalog: Catalog) -> Iterator[str]:
    form, defaults = _read_default(step)
    page = min(choose_width(in_pipe=PAGE), PAGE)
    yield f"{emphasise(step.id)} - {step.name}\n\n{wrap_text(step.description, page)}\n"
    if step.aliases:
        yield f"{emphasise('Also called')}\n{wrap_text(', '.join(step.aliases), page)}\n"
    makes = [(slot.name, _describe_slot(slot)) for slot in step.produces]
    sections = {
        "Takes": _takes(step.consumes, catalog) or [("nothing", "")],
        "Makes": makes or [("nothing", "It runs until it is stopped.")],
        "Needs beside it": [(n.name, f"{n.step}  {n.description}") for n in step.needs],
        "Started": list(step.describe_start()) if isinstance(step, TreeManifest) else [],
        "Configs": list(_configs(step)) or [("none", "")],
        "Variants": list(_variants(step)),
        "Parameters": list(_parameters(step, defaults)),
        "Models": [(model.name, model.description) for model in step.models],
        "When ... then ...": [(advice.when, advice.then) for advice in step.strategies],
        "Known errors": [(error.name, error.recovery) for error in step.errors],
    }
    for title, pairs in sections.items():
        if pairs:
            yield f"{emphasise(title)}\n{render_pairs(pairs)}"
    yield f"{emphasise('Try')}\n" + "".join(
        f"  # {why}\n{wrap_text(command, page - 2, continued=True)}\n"
        for command, why in _examples(form, defaults)
    )


def _configs(step: Manifest) -> Iterator[tuple[str, str]]:
    """The configs, and which variant of the step each of them chooses."""
    from nemotron_style.runtime.config.inheritance import read_config_file

    for name in step.configs:
        key, path = step.run.variant_key, step.folder / f"{name}.yaml"
        values = read_config_file(path, home=step.folder).values if key else {}
        yield name, f"{key}: {get_key(values, key)}" if key else ""


def _variants(step: Manifest) -> Iterator[tuple[str, str]]:
    """What the step takes and makes, and how it starts, where the config chooses a variant."""
    for name, form in [*step.forms.items()][1:]:
        how = form.run.launch + (f" in the image {form.run.image}" if form.run.image else "")
        yield f"{step.run.variant_key}={name}", f"{_flow(form)}. Started by {how}."


def _takes(slots: Sequence[Slot], catalog: Catalog) -> list[tuple[str, str]]:
    pairs = []
    for slot in slots:
        makers = [maker.id for maker in catalog.producers(slot.kind)]
        text = _describe_slot(slot)
        text += f" Made by {', '.join(makers)}." if makers else ""
        pairs.append((slot.name, text))
    return pairs


def _describe_slot(slot: Slot) -> str:
    notes = [_name_kinds(slot)]
    keys = " or ".join(filter(None, (slot.config_key, *slot.other_keys)))
    notes += [f"config key {keys}"] if keys else []
    notes += [f"where {slot.condition}"] if slot.when else []
    description = slot.description.strip()
    end = "" if not description or description.endswith((".", "!", "?")) else "."
    return f"[{', '.join(notes)}] {description}{end}".strip()


def _parameters(step: Manifest, defaults: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for parameter in step.parameters:
        default = defaults.get(parameter.name, parameter.default)
        choices = f" One of {', '.join(map(str, parameter.choices))}." if parameter.choices else ""
        yield (
            parameter.name,
            f"{parameter.description}{choices} [default:{NO_BREAK}{show_value(default)}]",
        )


def _read_default(step: Manifest) -> tuple[Manifest, dict[str, Any]]:
    """The step as its default config runs it, and the values of that; none where it is broken."""
    from nemotron_style.runtime.config.resolve import resolve_config

    try:
        resolved = resolve_config(step, name="default", overrides=())
    except StepsError:
        return step, {}
    return resolved.manifest, flatten(resolved.values)


def _examples(step: Manifest, defaults: dict[str, Any]) -> Iterator[tuple[str, str]]:
    run = f"nemotron-style steps run {step.id}"
    if "tiny" in step.configs:
        yield f"{run} -c tiny", "the real code in small, on this machine"
    inputs = "".join(f" -i {slot.name}=REF" for slot in step.consumes if slot.required)
    yield f"{run} --dry-run{inputs}", "see exactly what would run, and run nothing"
    if step.parameters:
        parameter = step.parameters[0]
        default = defaults.get(parameter.name, parameter.default)
        value = default if isinstance(default, int | float) else "VALUE"
        yield f"{run}{inputs} {parameter.name}={value}", "change a value of the config"
    yield f"{run}{inputs} -b slurm", "submit it to a cluster and return"
