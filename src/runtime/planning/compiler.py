"""The job that a step's compiler writes: files, notes, resources, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nemotron_style.runtime.catalog.manifest import Run
from nemotron_style.runtime.catalog.nemotron_tree import TreeManifest
from nemotron_style.runtime.config.model import TITLES, WANDB, Tracker
from nemotron_style.runtime.config.resolve import ResolvedConfig, import_object
from nemotron_style.runtime.errors import ManifestError, Problem
from nemotron_style.runtime.paths import expand_path, show_path
from nemotron_style.runtime.planning.inputs import ResolvedInput
from nemotron_style.runtime.planning.tree_step import compile_tree
from nemotron_style.runtime.profiles.model import Profile
from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.runtime.store.store import Store
from nemotron_style.runtime.validation import get_key


def compile_job(
    config: ResolvedConfig,
    inputs: Mapping[str, ResolvedInput],
    *,
    profile: Profile,
    image: str | None,
    store: Store,
) -> CompiledJob:
    """What the compiler of the step makes; nothing where the manifest names none.

    Raises ``ManifestError`` for a compiler that cannot be imported, or makes something else.
    """
    manifest = config.manifest
    if isinstance(manifest, TreeManifest):
        return compile_tree(config, inputs, profile=profile)
    text, where = manifest.run.compiler, show_path(manifest.path)
    trackers = config.parsed.trackers() if config.parsed else {}
    problems = check_trackers(trackers, profile, image=image)
    if text is None:
        return CompiledJob(problems=tuple(problems))
    compiler = import_object(text, where=where, key="run.compiler")
    origins = {slot: one.made_from for slot, one in inputs.items() if one.made_from}
    site = JobSite(
        executor=profile.executor,
        image=image or manifest.run.image,  # without one, the step's says what is meant
        nodes=profile.nodes,
        gpus_per_node=profile.gpus_per_node,
        inputs={slot: one.kind for slot, one in inputs.items()},
        variables=_name_variables(profile),
        files=InputFolders(dict(_find_files(inputs, store))),
        origins=InputFolders(dict(_find_files(origins, store))),
        outside=frozenset(slot for slot, one in [*inputs.items(), *origins.items()] if one.outside),
        memory=profile.memory,
        gpu_memory=profile.gpu_memory or _read_gpu_memory(profile.resource_shape),
        python=profile.python,
    )
    compiled = compiler(config.parsed, site)
    if not isinstance(compiled, CompiledJob):
        what, got = f"{text} returns no CompiledJob", type(compiled).__name__
        raise ManifestError(Problem(where=where, key="run.compiler", what=what, got=got))
    return replace(compiled, problems=(*compiled.problems, *problems))


class InputFolders(Mapping[str, Path]):
    """Where the content of each input lies; what is in a bucket is fetched when it is asked for."""

    def __init__(self, places: Mapping[str, Callable[[], Path]]) -> None:
        self._places = places

    def __getitem__(self, slot: str) -> Path:
        return self._places[slot]()

    def __contains__(self, slot: object) -> bool:
        return slot in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def check_trackers(
    trackers: Mapping[str, Tracker], profile: Profile, *, image: str | None
) -> Iterator[Problem]:
    """Trackers whose package is not there, and a service that is asked for without its key.

    What another machine, an image or another interpreter has is not known here.
    """
    here = profile.executor == "local" and image is None and profile.python is None
    for name, tracker in trackers.items():
        if here and importlib.util.find_spec(name) is None:
            what = f"{TITLES[name]} needs the package {name!r}, which is not installed"
            fix = f"pip install 'nemotron-style[{name}]', or take it out of {tracker.key}"
            yield Problem(key=tracker.key, what=what, fix=fix)
        own = os.environ if profile.executor == "local" else {}
        mode = profile.env.get("WANDB_MODE", own.get("WANDB_MODE"))
        has_key = "WANDB_API_KEY" in {*own, *profile.env, *profile.secrets}
        if name == WANDB and mode == "online" and not has_key and not profile.setup:
            what = "WANDB_MODE=online needs WANDB_API_KEY, which the job would not have"
            fix = "name it among the profile's secrets, or leave WANDB_MODE: runs are then kept "
            fix += "in files that `wandb sync` sends"
            yield Problem(key=tracker.key, what=what, fix=fix)


def _find_files(
    inputs: Mapping[str, ResolvedInput], store: Store
) -> Iterator[tuple[str, Callable[[], Path]]]:
    for slot, one in inputs.items():
        artifact = store.find(one.ref) if one.ref else None
        if artifact:
            yield slot, partial(store.fetch, artifact)
        elif one.adoption and one.digest:
            yield slot, partial(expand_path, one.adoption.location)


def _read_gpu_memory(shape: str | None) -> str | None:
    """What a shape of Lepton says of the memory of a GPU: 80G of ``gpu.8xh100-80gb``."""
    found = re.search(r"-(\d+)gb$", shape or "")
    return f"{found[1]}G" if found else None


def _name_variables(profile: Profile) -> frozenset[str] | None:
    """The variables of a job; None on this machine, whose own it gets too, and after a setup."""
    if profile.executor == "local" or profile.setup:
        return None
    return frozenset({*profile.env, *profile.secrets})


def choose_image(
    run: Run, values: Mapping[str, Any], profile: Profile, notes: list[str]
) -> str | None:
    """The image of the step, else of the profile; on this machine only if the profile has one.

    Where the config may name one (``image_key``), what it names comes first, then the profile's.
    """
    named = get_key(values, run.image_key) if run.image_key else None
    if named:
        return str(named)
    if profile.executor == "local" and profile.image is None:
        return None
    first, second = (profile.image, run.image) if run.image_key else (run.image, profile.image)
    if first and second and first != second:
        of_step = "the step's", "the profile's"
        of_first, of_second = of_step[::-1] if run.image_key else of_step
        notes.append(f"image: {of_first} {first} instead of {of_second} {second}")
    return first or second
