"""A step whose job is written by a compiler: what the compiler may know, and what it makes.

A manifest names one with ``[run] compiler``, a function ``(config, site) -> CompiledJob``. It is
pure, but for reading what ``site.files`` names, and imports no torch: what it makes is part of the
sealed plan, so the dry run shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemotron_style.runtime.errors import Problem


@dataclass(frozen=True)
class JobSite:
    """Where a job will run: ``nodes`` and ``gpus_per_node`` are what the profile offers.

    ``inputs`` has the kind of each filled slot; ``variables`` the names of the environment
    variables that the profile gives a job, secret ones too, None where it gets others as well;
    ``files`` where the content of an input lies that exists already and can be read from here;
    ``origins`` where that lies which will be converted for a slot. ``outside`` are the slots whose
    content no run of ours has made. ``memory`` is what the profile gives a job on each machine.
    ``gpu_memory`` is that of a GPU there, ``python`` the interpreter that the profile names.
    """

    executor: str
    image: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    variables: frozenset[str] | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    origins: Mapping[str, Path] = field(default_factory=dict)
    outside: frozenset[str] = frozenset()
    memory: str | None = None
    gpu_memory: str | None = None
    python: str | None = None


@dataclass(frozen=True)
class CompiledJob:
    """Files that the job finds in its plan, lines that explain them, and what the job takes.

    ``resources`` replaces those of the manifest (``nodes``, ``gpus`` on each of them);
    ``problems`` are reported together with all others, and then nothing is launched.
    ``identity`` is what of the site changes the result, such as the version of a program in the
    image; it is part of what identifies the run.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    resources: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
