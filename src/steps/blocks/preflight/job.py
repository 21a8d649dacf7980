"""What can be said of a job before it starts: what it will take, and everything that is wrong.

A step's ``compile_job`` names its numbers and its inputs, and gets notes and problems for the
plan. Only what is there is looked at: nothing is said of an input that another run makes first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nemotron_style.runtime.config.model import Section
from nemotron_style.runtime.errors import InputError, Problem
from nemotron_style.runtime.step.compiled import CompiledJob, JobSite
from nemotron_style.steps.blocks.data.chat_format import ChatPromptTokens
from nemotron_style.steps.blocks.preflight.machine import (
    Machine,
    check_devices,
    look_at_machine,
)
from nemotron_style.steps.blocks.preflight.memory import (
    Load,
    Memory,
    estimate_memory,
    show_gigabytes,
)
from nemotron_style.steps.blocks.settings.model_config import ModelConfig, find_indivisible
from nemotron_style.steps.blocks.settings.parallel_config import ALIGNER_KEYS
from nemotron_style.steps.blocks.settings.row_config import LongRowReading, RowReading

# What looks at content is imported where there is some: it knows all layouts and families.
if TYPE_CHECKING:
    from nemotron_style.steps.blocks.data.chat.interface import Chat
    from nemotron_style.steps.blocks.data.layouts.layout import Use
    from nemotron_style.steps.blocks.preflight.model_source import ModelSource
    from nemotron_style.steps.blocks.preflight.row_sample import RowSample


@dataclass(frozen=True)
class Rows:
    """Rows that fill a slot: what they are used for, and how many of them the job needs at once.

    ``key`` is where the config says how many, ``fix`` what to do about too few. ``settings`` is
    the section of the config that they are read by.
    """

    use: Use | None
    needed: int = 0
    key: str = ""
    what: str = "the data set does not fill one global batch"
    fix: str = ""
    settings: Section | None = None

    @property
    def reading(self) -> RowReading:
        """How the step reads them, where its config says so."""
        return self.settings if isinstance(self.settings, RowReading) else RowReading()


@dataclass(frozen=True)
class Job:
    """What a job does with its model: ``load`` is that of a process, as far as the config says.

    ``longest`` makes the most tokens of a row of what the model can hold, ``new_tokens`` those
    that are sampled after a prompt. ``packed_batch`` are the rows of a global batch, where passes
    are filled with them and not padded. ``tokens`` are the chat tokens of the config, ``sizes``
    those of a model that begins from nothing. ``batch`` is the key of the samples of an update, and
    how many they are. ``keys`` are those of precision and processes.
    """

    load: Load
    machines: int = 1
    processes: int = 1
    model: str = "model"
    rows: Mapping[str, Rows] = field(default_factory=dict)
    longest: Callable[[int], int] = lambda limit: limit
    new_tokens: Callable[[int], int] | None = None
    packed_batch: int = 0
    batch: tuple[str, int] | None = None
    tokens: ChatPromptTokens | None = None
    chats: bool = True
    sizes: ModelConfig | None = None
    keys: tuple[str, str] = ("trainer.precision", "trainer.devices")
    activation_keys: tuple[str, str] = ALIGNER_KEYS
    precision_fix: str = "set trainer.precision=32"
    memory_fix: str = "divide the model: raise tensor_model_parallel_size and the processes"


def compile_checks(job: Job, site: JobSite, *problems: Problem) -> CompiledJob:
    """Notes on what a job takes, and all that is wrong with it; ``problems`` are known already."""
    found = [*problems]
    machine = look_at_machine() if site.executor == "local" else Machine()
    found += check_devices(
        machine,
        half=job.load.half and job.load.trains,
        processes=job.processes,
        keys=job.keys,
        fix=job.precision_fix,
    )
    on_cpu = runs_on_cpu(job, machine, site)
    source = find_model(job, site, found)
    sizes = source.sizes if source else job.sizes
    chat = find_chat(job, site, source, found)
    samples = {
        slot: sample_rows(slot, rows, site, chat, found)
        for slot, rows in job.rows.items()
        if slot in site.files and slot in site.outside
    }
    notes = [*source.notes] if source else []
    if notes and job.model in site.origins and job.model not in site.files:
        notes[0] += ", to be converted first"
    notes += [sample.describe(slot) for slot, sample in samples.items()]
    notes += describe_dropout(job)
    found += check_batch(job)
    load = job.load
    layers = sizes.num_layers // load.pipeline if sizes else None
    keys = job.activation_keys
    found += load.activations.find_problems(tensor=load.tensor, layers=layers, keys=keys)
    if sizes:
        found += find_indivisible(sizes, tensor=load.tensor, pipeline=load.pipeline)
        found += check_lengths(job, sizes, samples)
        memory = weigh(job, sizes, samples, on_cpu=on_cpu)
        beside = "" if memory.knows_rows else ", beside what its rows take"
        of = "" if job.model == "model" else f" with {job.model}"
        notes.append(f"memory{of}: about {memory} a process{beside}")
        notes += check_memory(job, memory, find_room(job, machine, site, on_cpu=on_cpu), found)
    return CompiledJob(notes=tuple(notes), problems=tuple(found))


def describe_dropout(job: Job) -> list[str]:
    """That each process drops inputs of adapters by random numbers of its own, where it does."""
    share = job.load.lora.adapter_dropout if job.load.lora else 0.0
    if not share or job.machines * job.processes == job.load.tensor:
        return []
    what = f"adapters: each process drops {share:g} of their inputs by numbers of its own"
    return [f"{what}; another number of processes trains others"]


def check_batch(job: Job) -> Iterator[Problem]:
    """More copies of the model than an update has samples: some would have nothing to do."""
    copies = job.machines * job.processes // (job.load.tensor * job.load.pipeline)
    if job.batch and copies > job.batch[1]:
        key, samples = job.batch
        yield Problem(
            key=job.keys[1],
            what="more data parallel processes than an update has samples",
            got=f"{copies} for {samples} ({key})",
            allowed=f"up to {samples}",
            fix=f"use fewer processes, divide the model over more of them, or raise {key}",
        )


def find_model(job: Job, site: JobSite, problems: list[Problem]) -> ModelSource | None:
    """The checkpoint that the job starts from, or the one that will be converted for it.

    What is wrong with the latter, the conversion says; one that a run of ours made was checked.
    """
    path = site.files.get(job.model) or site.origins.get(job.model)
    if path is None:
        return None
    from nemotron_style.steps.blocks.preflight.model_source import check_model, look_at_model

    if job.model in site.files and job.model in site.outside:
        source, own = check_model(path)
        problems += own
        return source
    return look_at_model(path)


def find_chat(
    job: Job, site: JobSite, source: ModelSource | None, problems: list[Problem]
) -> Chat | None:
    """The chat format of a checkpoint from outside; None where it cannot be known yet."""
    if source is None or job.model not in site.outside:
        return None
    from nemotron_style.steps.blocks.preflight.model_source import open_chat_of

    try:
        return open_chat_of(source, job.tokens)
    except InputError as error:
        if job.chats:
            problems += [one for one in error.problems if one not in problems]
        return None


def sample_rows(
    slot: str, rows: Rows, site: JobSite, chat: Chat | None, problems: list[Problem]
) -> RowSample:
    """What rows from outside are like, and whether they are enough."""
    from nemotron_style.steps.blocks.preflight.row_sample import look_at_rows

    sample = look_at_rows(site.files[slot], rows.use, settings=rows.reading, chat=chat)
    problems += sample.problems
    if rows.needed and sample.rows is not None and sample.rows < rows.needed:
        got = f"{sample.rows} rows of {slot}, and {rows.needed} are needed"
        problems.append(Problem(key=rows.key, what=rows.what, got=got, fix=rows.fix))
    return sample


def check_lengths(
    job: Job, sizes: ModelConfig, samples: Mapping[str, RowSample]
) -> Iterator[Problem]:
    """Rows that are longer than the model may read, where the step would refuse them."""
    limit = job.longest(sizes.max_sequence_length)
    for slot, sample in samples.items():
        reading = job.rows[slot].reading
        stops = not isinstance(reading, LongRowReading) or reading.long_rows == "stop"
        if sample.longest > limit and stops:
            what = "rows are longer than the model may read"
            got = f"{sample.longest} tokens in one of the first {sample.seen}"
            fix = "shorten or remove them, or raise the length that the config allows"
            yield Problem(key=slot, what=what, got=got, allowed=f"{limit} tokens", fix=fix)


def weigh(
    job: Job, sizes: ModelConfig, samples: Mapping[str, RowSample], *, on_cpu: bool
) -> Memory:
    """The memory of a process, for the longest row that there is, or else that there may be.

    What rows take is left out where nothing but the model says how long they may be.
    """
    load, limit = job.load, job.longest(sizes.max_sequence_length)
    seen = [samples[slot].longest for slot, rows in job.rows.items() if slot in samples]
    if seen and all(seen):
        limit = min(limit, max(seen) + (job.new_tokens(limit) if job.new_tokens else 0))
    elif limit == sizes.max_sequence_length:
        limit = 0
    data = max(1, job.machines * job.processes // (load.tensor * load.pipeline))
    if on_cpu:  # only megatron-core's optimizer spreads its state, and it wants CUDA
        load = replace(load, on_cpu=True, spread_optimizer=False)
    lengths = samples["data"].lengths if job.packed_batch and "data" in samples else ()
    if lengths:  # a pass is full, but for a small batch
        batch = math.ceil(job.packed_batch / data * sum(lengths) / len(lengths))
        passed = min(load.pass_rows * job.longest(sizes.max_sequence_length), batch)
        load = replace(load, pass_tokens=max(passed, limit))
    return estimate_memory(sizes, replace(load, data=data, row_tokens=limit))


def runs_on_cpu(job: Job, machine: Machine, site: JobSite) -> bool:
    """Whether the processes compute on CPUs, as far as it is known; bfloat16 trains on GPUs."""
    has_none = machine.gpus == 0 or (site.executor != "local" and not site.gpus_per_node)
    return has_none and not (job.load.half and job.load.trains)


@dataclass(frozen=True)
class Room:
    """Bytes that ``sharing`` processes have together, and ``whose`` they are."""

    size: int
    whose: str
    sharing: int = 1


def find_room(job: Job, machine: Machine, site: JobSite, *, on_cpu: bool) -> Room | None:
    """The memory that the job's processes have; None where that is not known."""
    if site.executor == "local":
        size = machine.ram_bytes if on_cpu else read_size(site.gpu_memory) or machine.gpu_bytes
        whose = "this machine has" if on_cpu else "a GPU here has"
    else:
        size = read_size(site.memory if on_cpu else site.gpu_memory)
        whose = "the profile gives" if on_cpu else "a GPU of the profile has"
    return Room(size, whose, job.processes if on_cpu else 1) if size else None


def check_memory(job: Job, memory: Memory, room: Room | None, problems: list[Problem]) -> list[str]:
    """A note where a process may not fit; a problem where it cannot, whatever its rows are."""
    if room is None or memory.total * room.sharing <= room.size:
        return []
    here = f"{room.sharing} processes take" if room.sharing > 1 else "a process takes"
    allowed = f"{show_gigabytes(room.size)} GB"
    held = memory if job.packed_batch else memory.certain  # a pass of packed rows is full
    if held.total * room.sharing <= room.size:
        takes = show_gigabytes(memory.total * room.sharing)
        return [f"memory: {here} {takes} GB, and {room.whose} {allowed}"]
    got = f"{room.sharing} x {held}" if room.sharing > 1 else str(held)
    problems.append(
        Problem(
            key=job.keys[1],
            what=f"the job does not fit into memory: {here} more than {room.whose}",
            got=got,
            allowed=f"up to {allowed}",
            fix=job.memory_fix,
        )
    )
    return []


def read_size(text: str | None) -> int | None:
    """The bytes of a size as Slurm writes it: ``64G``, ``500000M``; megabytes without a letter."""
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)i?B?", text or "", re.IGNORECASE)
    return (
        int(found[1]) << {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}[found[2].upper()]
        if found
        else None
    )
