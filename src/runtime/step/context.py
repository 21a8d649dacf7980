"""What a recipe sees of the runner: its inputs, its outputs, and a few ways to report.

A recipe is ``def run(config: Config, ctx: StepContext) -> None``. It reads ``ctx.input(slot)``,
writes into ``ctx.output(slot).path`` and returns; the worker commits what it wrote. Nothing here
imports torch. In a test a context is made directly::

    ctx = StepContext(run_dir=tmp_path, inputs={"data": artifact}, outputs=("model",))
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.errors import InputError, Problem, suggest
from nemotron_style.runtime.step.checkpoint import Checkpoints
from nemotron_style.runtime.step.fact import plain_fact, plain_number
from nemotron_style.runtime.step.metrics import Metrics
from nemotron_style.runtime.step.progress import Pace, format_progress

if TYPE_CHECKING:
    from nemotron_style.runtime.store.record import Artifact

SECONDS_BETWEEN_PROGRESS = 0.2
SECONDS_BETWEEN_LOG_LINES = 5.0
SECONDS_BETWEEN_LOOKS = 0.5
NEVER = float("-inf")


@dataclass(frozen=True)
class ProcessRank:
    """The rank of this process among ``world_size``, and its rank on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


@dataclass
class Stop:
    """Whether the run was asked to stop: by a signal, or by a file that appeared.

    The file reaches workers that no signal does: on other machines, or below a launcher that
    would pass a signal on as an order to kill. A service beside a step stops too when ``parent``,
    the process of the step, is its parent no more.
    """

    requested: bool = False
    file: Path | None = None
    parent: int | None = None
    looked: float = NEVER

    def is_requested(self) -> bool:
        """Whether either has happened; the file is looked for about twice a second."""
        now = time.monotonic()
        if not self.requested and self.file and now - self.looked >= SECONDS_BETWEEN_LOOKS:
            self.looked = now
            self.requested = self.file.exists() or self.parent not in (None, os.getppid())
        return self.requested


@dataclass
class Output:
    """One product in the making. ``path`` exists, is empty, and is the same for all ranks."""

    slot: str
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)

    def note(self, **facts: Any) -> None:
        """Keep facts in the artifact's record (a tokenizer digest, a canary, ...).

        Numbers, text, and tables and lists of them; a path or a date is kept as text. Raises
        StepFailed for what a record cannot hold.
        """
        where = f"output {self.slot}"
        for name, value in facts.items():
            self.facts[name] = plain_fact(value, where=where, key=name)


@dataclass(kw_only=True)
class StepContext:
    """A recipe's view of its run; the defaults are those of a lone first attempt.

    ``run_dir`` is shared by all ranks and attempts; ``attempt`` counts from 1; ``arguments`` are
    those given after ``--``; ``services`` wait for a service and return its URL; ``files`` are
    texts of the plan.
    """

    run_dir: Path
    inputs: Mapping[str, Artifact]
    outputs: InitVar[Iterable[str]]
    run_id: str = "run"
    process: ProcessRank = ProcessRank()
    attempt: int = 1
    arguments: tuple[str, ...] = ()
    stop: Stop = field(default_factory=Stop)
    services: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self, outputs: Iterable[str]) -> None:
        self.rank, self.world_size = self.process.rank, self.process.world_size
        self.local_rank = self.process.local_rank
        self.metrics = Metrics(self.run_dir, enabled=self.is_first)
        self.checkpoints = Checkpoints(self.run_dir, attempt=self.attempt, rank=self.rank)
        # One directory an attempt, so that it is empty at the start with no rank clearing it.
        self.staging = self.run_dir / "staging" / str(self.attempt)
        self._outputs = {slot: Output(slot, self.staging / slot) for slot in outputs}
        for folder in (self.staging, *(output.path for output in self._outputs.values())):
            folder.mkdir(parents=True, exist_ok=True)
        self._pace = Pace()
        self._reported = self._logged = NEVER

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes records and log lines."""
        return self.rank == 0

    @property
    def stopping(self) -> bool:
        """Whether the run was asked to stop: save a checkpoint and raise ``Interrupted``.

        Ranks may learn of it at different steps; with several of them, agree (an all-reduce of
        this flag) before leaving the loop.
        """
        return self.stop.is_requested()

    def input(self, slot: str) -> Artifact:
        """The artifact of a slot, unchanged by size and time.

        Raises ``InputError`` when it was not given.
        """
        artifact = self.optional_input(slot)
        if artifact is None:
            near = suggest(slot, self.inputs)
            raise InputError(Problem(where=self.run_id, key=slot, what="no such input", fix=near))
        return artifact

    def optional_input(self, slot: str) -> Artifact | None:
        """The artifact of a slot, unchanged by size and time, or None when it was not given."""
        return self.inputs.get(slot)

    def file(self, name: str) -> str:
        """The text of a file that the step's compiler wrote into the plan.

        Raises ``InputError`` when it wrote none of that name.
        """
        if name not in self.files:
            near = suggest(name, self.files)
            raise InputError(Problem(where=self.run_id, key=name, what="no such file", fix=near))
        return self.files[name]

    def service(self, name: str) -> str | None:
        """The URL of a service of the manifest's ``needs``, once it answers that it is ready.

        None where the config names one that is there already, so that none was started. Raises
        ``StepFailed`` when the one that was started ended instead, or took too long.
        """
        wait = self.services.get(name)
        return wait() if wait else None

    def output(self, slot: str) -> Output:
        """The product of a slot of the manifest's ``produces``."""
        return self._outputs[slot]

    def summarise(self, **figures: Any) -> None:
        """Keep final figures: in the artifacts' records, and in the summary that is shown.

        Numbers, texts and paths. Raises StepFailed for anything else.
        """
        for name, value in figures.items():
            is_text = isinstance(value, str | bool | os.PathLike) or value is None
            write = plain_fact if is_text else plain_number
            self.figures[name] = write(value, where="summary", key=name)

    def say(self, text: str) -> None:
        """Print one log line, on the first rank only."""
        if self.is_first:
            print(text, flush=True)

    def progress(self, done: int, total: int, /, **figures: float) -> None:
        """Report how far the work is; cheap enough to call at every step.

        An attached command line sees it at most five times a second (``progress.json``, with the
        rate, the time left and the last validation); the log gets a line every few seconds and
        the last one.
        """
        now = time.monotonic()
        per_second = self._pace.update(done, total, now)
        last = done >= total
        if not self.is_first or not (last or now - self._reported >= SECONDS_BETWEEN_PROGRESS):
            return
        self._reported = now
        numbers = {
            name: plain_number(value, where="progress", key=name) for name, value in figures.items()
        }
        report: dict[str, Any] = {"done": int(done), "total": int(total), "figures": numbers}
        if per_second and not last:
            report |= {"per_second": per_second, "seconds_left": (total - done) / per_second}
        if last or now - self._logged >= SECONDS_BETWEEN_LOG_LINES:
            self._logged = now
            self.say(format_progress(report))
        if self.metrics.last_validation:
            report["validation"] = self.metrics.last_validation
        attempt = self.run_dir / "attempts" / str(self.attempt)
        write_json(attempt / "progress.json", report, durable=False)
