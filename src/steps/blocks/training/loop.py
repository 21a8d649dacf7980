"""What happens between two updates of a training run, in the same order in every recipe.

A recipe samples or loads, computes and updates; before each update the loop validates when that
is due, saves when that is due or the run was told to stop, and stops::

    loop = TrainingLoop(ctx, schedule, validate=validate, save=save)
    for step in loop.steps(done):
        loss = ...
        grad_norm = optimizer.step(lr, step=step, loss=loss)
        ctx.metrics.log(step, loss=loss, grad_norm=grad_norm)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nemotron_style.runtime.errors import Interrupted
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.steps.blocks.model.parallel import any_rank
from nemotron_style.steps.blocks.settings.training_config import Length


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a run of ``steps`` updates validates and saves.

    Intervals count updates; 0 means no other time than the start or the end. The end is always
    saved. ``validate_from`` is the first update after which the interval counts.
    """

    steps: int
    validation_interval: int
    save_interval: int
    validate_at_start: bool = False
    validate_at_end: bool = True
    validate_from: int = 0

    @staticmethod
    def of(length: Length, steps: int, *, validate_at_start: bool = False) -> Schedule:
        """The schedule of ``steps`` updates at the intervals of a config."""
        return Schedule(
            steps=steps,
            validation_interval=length.val_check_interval,
            save_interval=length.steps_between_saves,
            validate_at_start=validate_at_start,
        )

    def validates(self, done: int) -> bool:
        """Whether validation is due after ``done`` updates."""
        if done == 0:
            return self.validate_at_start
        if done == self.steps and self.validate_at_end:
            return True
        return done >= self.validate_from and _is_multiple(done, self.validation_interval)

    def saves(self, done: int) -> bool:
        """Whether saving the state is due after ``done`` updates."""
        return done == self.steps or _is_multiple(done, self.save_interval)


class TrainingLoop:
    """Counts updates, and validates, saves and stops between them.

    Args:
        validate: measures the model after that many updates; True asks for the state to be saved
            at once. None where there is nothing to validate on.
        save: makes the state after that many updates one that the run can continue from.
        failures: errors of a service that end the run with its state saved; see
            :meth:`save_on_failure`.
    """

    def __init__(
        self,
        ctx: StepContext,
        schedule: Schedule,
        *,
        validate: Callable[[int], bool | None] | None,
        save: Callable[[int], None],
        failures: tuple[type[Exception], ...] = (),
    ) -> None:
        self.done = 0  # updates made so far
        self._ctx, self._schedule = ctx, schedule
        self._validate, self._save, self._failures = validate, save, failures
        self._validated = self._saved = 0
        self._amount, self._started = 0, time.monotonic()
        self._lap_started, self._laps = 0.0, dict[str, float]()

    def steps(self, done: int, *, validated: int | None = None) -> Iterator[int]:
        """Yield the number of each update to make, ``done + 1`` and on.

        ``done`` updates were made by earlier attempts. ``validated`` is the number of updates
        after which the model was last validated, ``done`` by default: a state that was saved
        because validation failed has yet to be validated.

        Raises:
            Interrupted: the run was told to stop; its state is saved.
        """
        self.done = self._saved = done
        self._validated = done if validated is None else validated
        self._started = time.monotonic()
        while True:
            with self.save_on_failure():
                self._finish_step()
            if self.done == self._schedule.steps:
                return
            self._lap_started, self._laps = time.perf_counter(), {}
            yield self.done + 1
            self.done += 1

    @contextmanager
    def save_on_failure(self) -> Iterator[None]:
        """Save the state before one of ``failures``, or ``Interrupted``, ends the run.

        For what stands between two updates. All ranks must raise the error, since all save.
        """
        try:
            yield
        except (Interrupted, *self._failures):
            self._save_once()
            raise

    def rate(self, amount: int) -> float:
        """Count ``amount`` (tokens); how many a second there were in this attempt so far."""
        self._amount += amount
        return self._amount / (time.monotonic() - self._started)

    def lap(self, name: str) -> dict[str, float]:
        """Take the seconds since the last lap of this step as ``name``; all of its laps by name."""
        now = time.perf_counter()
        self._laps[name], self._lap_started = now - self._lap_started, now
        return dict(self._laps)

    def _finish_step(self) -> None:
        done, schedule = self.done, self._schedule
        save_now = False
        if self._validate and done > self._validated and schedule.validates(done):
            save_now = bool(self._validate(done))
            self._validated = done
        # Ranks may learn of a stop at different steps, so every one of them asks at every step.
        stopping = any_rank(self._ctx.stopping) and done < schedule.steps
        if save_now or stopping or schedule.saves(done):
            self._save_once()
        if stopping:
            raise Interrupted(
                f"stopped after step {done} of {schedule.steps}; the same command continues"
            )

    def _save_once(self) -> None:
        if self.done > self._saved:
            self._save(self.done)
            self._saved = self.done


def _is_multiple(done: int, interval: int) -> bool:
    return interval > 0 and done % interval == 0
