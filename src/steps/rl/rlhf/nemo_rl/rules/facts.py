"""What is known about a job beside its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version


@dataclass(frozen=True)
class SamePrompt:
    """Rows of one file that hold the same prompt and principle.

    ``have_ids``: each has a ``prompt_id`` or ``_ng_task_index`` of its own, by which NeMo-Gym
    tells them apart from v0.4.0 on.
    """

    lines: tuple[int, ...]
    have_ids: bool = False


@dataclass(frozen=True)
class FileRows:
    """What a JSONL file of prompts holds; lines count from 1 and the lists keep the first ten.

    ``agents`` maps the name in ``agent_ref`` to the first line that has it. ``longest`` is in
    characters of all messages, with its line. ``flat_input`` are lines whose ``input`` is no
    list of messages with text. ``copies`` is how often each prompt stands in the file, and
    ``copies_of_ids`` how often with the same id; None where not all stand equally often.
    ``all_have_ids``: each row has an id, see :class:`SamePrompt`.
    """

    path: str
    rows: int
    same_prompts: tuple[SamePrompt, ...] = ()
    copies: int | None = 1
    copies_of_ids: int | None = 1
    all_have_ids: bool = False
    broken: tuple[int, ...] = ()
    blank: tuple[int, ...] = ()
    without_prompt: tuple[int, ...] = ()
    without_params: tuple[int, ...] = ()
    without_agent: tuple[int, ...] = ()
    agents: Mapping[str, int] | None = None
    flat_input: tuple[int, ...] = ()
    without_limit: int = 0
    longest: tuple[int, int] | None = None
    longest_tokens: int | None = None


@dataclass(frozen=True)
class RowFacts:
    """The prompt files of a job, those that can be read from here.

    ``are_final``: NeMo-RL reads these files as they are. Else the job brings their rows into
    the form that NeMo-Gym wants, and only what that does not mend is a problem.
    """

    train: FileRows | None = None
    validation: FileRows | None = None
    are_final: bool = False


@dataclass(frozen=True)
class Resumed:
    """The newest checkpoint of the directory: its step, and the configuration it was made with."""

    step: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What a rule may know beside the configuration; None where nothing is known.

    ``nodes`` and ``gpus_per_node`` are those of the job. ``variables`` are names of
    environment variables that the job gets, secret ones too; there may be others unless
    ``knows_all_variables``. ``ray_worker_ports`` is the range
    that Ray's workers listen in. ``publishes_megatron``: a ``checkpoint_nemo_rl`` is promised.
    """

    version: Version
    executor: str = ""
    nodes: int | None = None
    gpus_per_node: int | None = None
    image: str | None = None
    variables: frozenset[str] = frozenset()
    knows_all_variables: bool = False
    ray_worker_ports: tuple[int, int] | None = None
    rows: RowFacts | None = None
    resumes: Resumed | None = None
    publishes_megatron: bool = False
