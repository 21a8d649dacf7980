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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_style.runtime.atomic import write_json
from nemotron_style.runtime.errors import InputError, Problem, suggest
from nemotron_style.runtime.step.checkpoint import Checkpoints
from nemotron_style.runtime.step.metrics import Metrics, plain_number

if TYPE_CHECKING:
    from nemotron_style.runtime.store.record import Artifact

SECONDS_BETWEEN_PROGRESS = 0.2
SECONDS_BETWEEN_LOG_LINES = 5.0
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Seat:
    """Where this process sits: its rank among ``world_size``, and its rank on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


@dataclass
class Stop:
    """Whether the run was asked to stop: by a signal, or by a file that appeared.

    The file reaches workers that no signal does: on other machines, or below a launcher that
    would pass a signal on as an order to kill. It is looked for about twice a second. A service
    beside a step stops too when ``parent``, the process of the step, is its parent no more.
    """

    requested: bool = False
    file: Path | None = None
    parent: int | None = None
    looked: float = float("-inf")

    def is_requested(self) -> bool:
        """Ask both."""
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
        """Keep JSON-able facts in the artifact's record (a tokenizer digest, a canary, ...)."""
        self.facts.update(facts)


class StepContext:
    """A recipe's view of its run.

    ``run_dir`` is the run's directory, shared by all ranks and attempts; ``attempt`` counts from
    1; ``arguments`` are those given after ``--``.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        inputs: Mapping[str, Artifact],
        outputs: Iterable[str],
        **seating: Any,
    ) -> None:
        """``seating`` may give run_id, seat, attempt, arguments, stop and services."""
        known: Seating = Seating(**seating)
        self.run_id, self.run_dir, self.inputs = known.run_id, run_dir, inputs
        self.rank, self.world_size = known.seat.rank, known.seat.world_size
        self.local_rank, self.attempt = known.seat.local_rank, known.attempt
        self.arguments = known.arguments
        self.figures: dict[str, Any] = {}
        self.metrics = Metrics(run_dir, enabled=self.is_first)
        self.checkpoints = Checkpoints(run_dir, attempt=known.attempt, rank=self.rank)
        self._stop, self._services = known.stop, known.services
        self._outputs = {slot: Output(slot, self.staging / slot) for slot in outputs}
        self.staging.mkdir(parents=True, exist_ok=True)
        for output in self._outputs.values():
            output.path.mkdir(parents=True, exist_ok=True)
        self._told = self._logged = float("-inf")

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes records and log lines."""
        return self.rank == 0

    @property
    def stopping(self) -> bool:
        """A signal asked the run to stop: save a checkpoint and raise ``Interrupted``.

        Ranks may learn of it at different steps; with several of them, agree (an all-reduce of
        this flag) before leaving the loop.
        """
        return self._stop.is_requested()

    def input(self, slot: str) -> Artifact:
        """The verified artifact of a slot. Raises ``InputError`` when it was not given."""
        artifact = self.optional_input(slot)
        if artifact is None:
            near = suggest(slot, self.inputs)
            raise InputError(Problem(where=self.run_id, key=slot, what="no such input", fix=near))
        return artifact

    def optional_input(self, slot: str) -> Artifact | None:
        """The verified artifact of a slot, or None when it was not given."""
        return self.inputs.get(slot)

    def service(self, name: str) -> str | None:
        """The URL of a service of the manifest's ``needs``, once it answers that it is ready.

        None where the config names one that is there already, so that none was started. Raises
        ``StepFailed`` when the one that was started ended instead, or took too long.
        """
        wait = self._services.get(name)
        return wait() if wait else None

    def output(self, slot: str) -> Output:
        """The product of a slot of the manifest's ``produces``."""
        return self._outputs[slot]

    def summarise(self, **figures: Any) -> None:
        """Keep final figures: in the artifacts' records, and in the summary that is shown."""
        for name, value in figures.items():
            is_text = isinstance(value, str | bool) or value is None
            self.figures[name] = value if is_text else plain_number(value)

    def say(self, text: str) -> None:
        """One log line, from the first rank only."""
        if self.is_first:
            print(text, flush=True)

    def progress(self, done: int, total: int, /, **figures: float) -> None:
        """Tell how far the work is; cheap enough to call at every step.

        The bar of an attached command line follows at most five times a second; the log gets a
        line every few seconds and the last one.
        """
        now = time.monotonic()
        last = done >= total
        if not self.is_first or not (last or now - self._told >= SECONDS_BETWEEN_PROGRESS):
            return
        self._told = now
        numbers = {name: plain_number(value) for name, value in figures.items()}
        shown = {"done": done, "total": total, "figures": numbers}
        attempt = self.run_dir / "attempts" / str(self.attempt)
        write_json(attempt / "progress.json", shown, durable=False)
        if last or now - self._logged >= SECONDS_BETWEEN_LOG_LINES:
            self._logged = now
            told = [f"{name}={show(number)}" for name, number in numbers.items()]
            self.say("  ".join([f"{done}/{total}", *told]))

    @property
    def staging(self) -> Path:
        """Where this attempt's outputs are written, one directory a slot."""
        # One directory an attempt, so that it is empty at the start with no rank clearing it.
        return self.run_dir / "staging" / str(self.attempt)


@dataclass(frozen=True, kw_only=True)
class Seating:
    """What a context is told about its process; the defaults are those of a lone first attempt."""

    run_id: str = "run"
    seat: Seat = Seat()
    attempt: int = 1
    arguments: tuple[str, ...] = ()
    stop: Stop = field(default_factory=Stop)
    services: Mapping[str, Callable[[], str]] = field(default_factory=dict)


def show(number: int | float | str) -> str:
    """A figure in at most five significant digits."""
    return f"{number:.5g}" if isinstance(number, float) else str(number)
