"""What a step is given: its inputs as artifacts, its config, and the step itself."""

from __future__ import annotations

import copy
import gc
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from nemotron_style.runtime.config.model import StepConfig, parse_config
from nemotron_style.runtime.errors import (
    ArtifactError,
    ManifestError,
    Problem,
    UsageError,
    raise_all,
)
from nemotron_style.runtime.run.plan import Plan, PlannedInput
from nemotron_style.runtime.store.record import Artifact
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.validation import put_key

EXTRAS = "install it; most steps need: pip install 'nemotron-style[train]'"


def open_inputs(plan: Plan, store: Store) -> dict[str, Artifact]:
    """The planned inputs by slot. Raises ``ArtifactError`` with all that are gone or changed."""
    inputs: dict[str, Artifact] = {}
    problems: list[Problem] = []
    for planned in plan.inputs:
        artifact = find_input(planned, store)
        if artifact is None:
            what, fix = store.explain_missing(planned.source), "run the same command again"
            problems.append(Problem(where=plan.step, key=planned.slot, what=what, fix=fix))
            continue
        problems += store.verify(artifact, deep=False)
        inputs[planned.slot] = replace(artifact, path=store.fetch(artifact))
    raise_all(ArtifactError, problems)
    return inputs


def find_input(planned: PlannedInput, store: Store) -> Artifact | None:
    """The artifact of a planned input; of several copies, one of the planned kind if there is."""
    if planned.producer:
        return store.output_of(*planned.producer)
    copies = store.by_digest(planned.source)
    return next((copy for copy in copies if copy.kind == planned.kind), next(iter(copies), None))


def bind_config(plan: Plan, inputs: Mapping[str, Artifact]) -> StepConfig:
    """The plan's config, with the paths of the inputs at the keys that are bound to them.

    Raises ``ConfigError`` when the schema refuses it.
    """
    values = copy.deepcopy(plan.config)
    for planned in plan.inputs:
        if planned.config_key:
            put_key(values, planned.config_key, str(inputs[planned.slot].path))
    schema: Any = load_object(plan.config_class)
    return parse_config(schema, values, where=lambda _: plan.step)


@contextmanager
def imported_for_good() -> Iterator[None]:
    """Within it nothing is collected, and what was imported is never looked at again.

    Modules are no garbage: without this a fifth of the import of torch and megatron-core is spent
    on looking for some among hundreds of thousands of objects, and so is part of every step.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def load_object(name: str) -> Callable[..., Any]:
    """The callable that ``package.module:name`` names.

    Raises ``ManifestError`` when the module has no such name, and ``UsageError`` when a package
    that it needs is not installed.
    """
    module_name, _, attribute = name.partition(":")
    try:
        with imported_for_good():
            loaded = getattr(importlib.import_module(module_name), attribute, None)
    except ModuleNotFoundError as error:
        what, fix = f"the step needs the package {error.name!r}", EXTRAS
        raise UsageError(Problem(where=name, what=what, fix=fix)) from None
    if not callable(loaded):
        what = f"module {module_name!r} has no {attribute!r}"
        raise ManifestError(Problem(key="run", what=what, got=name))
    return loaded  # type: ignore[no-any-return]
