"""What a running job says about itself: progress, metrics, alerts, and whether it still moves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from nemotron_style.runtime.errors import Interrupted, Problem, StepFailed
from nemotron_style.runtime.step.child_process import ChildProcess
from nemotron_style.runtime.step.context import StepContext
from nemotron_style.runtime.step.state_file import read_state, write_state
from nemotron_style.steps.rl.rlhf.hacking_alert import find_alerts
from nemotron_style.steps.rl.rlhf.nemo_rl.job.event_folder import EventFolder
from nemotron_style.steps.rl.rlhf.nemo_rl.job.log_reader import LogReader
from nemotron_style.steps.rl.rlhf.nemo_rl.job.settings import Settings
from nemotron_style.steps.rl.rlhf.nemo_rl.schema import COMPARE

SECONDS_BETWEEN_LOOKS = 1.0
SHOWN = {"reward": "reward", "hacking/kl_to_start": "kl", "mean_gen_tokens_per_sample": "tokens"}
LENGTH = "mean_gen_tokens_per_sample"
GIVEN_UP = ("given_up_unparseable", "given_up_error")


class Watch:
    """Turns event files and lines of output into metrics, progress and alerts.

    ``steps`` are those of the whole run, ``notes`` the file that keeps what only the log told, for
    the attempts that come after this one.
    """

    def __init__(
        self,
        ctx: StepContext,
        settings: Settings,
        events: EventFolder,
        log: LogReader,
        *,
        steps: int,
        notes: Path,
        stall_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ctx, self._settings, self._events, self._log = ctx, settings, events, log
        self.steps, self.done = steps, log.done
        self._notes_path, self._notes = notes, read_state(notes) or {}
        self._stall_seconds, self._clock = stall_seconds, clock
        self._moved, self._marks = clock(), log.marks
        self._pending: dict[int, dict[str, float]] = {}
        self._start_tokens = 0.0
        self._shown_alerts: set[str] = set()
        self._shown_damage: set[str] = set()
        self._figures: dict[str, float] = {}

    def replay(self) -> None:
        """Log again what earlier attempts measured, up to the step that this one continues from."""
        for step, metrics in sorted(self._events.read().items()):
            if step <= self.done:
                self._report(step, metrics, speak=False)

    def look(self, *, last: bool = False) -> None:
        """Take in what is new; ``last`` when nothing more will come."""
        new, told = self._events.read(), self._log.take_figures()
        if not self._settings.get("logger.tensorboard_enabled"):
            for step, figures in told.items():
                new.setdefault(step, {}).update(figures)
        # The metrics of a step come in pieces, and lines that the script wrote before them may be
        # read after them.  So a step is whole at the look after that with its last piece.
        first = min(new, default=math.inf)
        whole = [step for step in self._pending if step < first]
        for step, metrics in new.items():
            self._pending.setdefault(step, {}).update(metrics)
        for step in sorted(self._pending if last else whole):
            self._report(step, self._pending.pop(step))
        self.done = max(self.done, self._log.done, *(step for step in new), 0)
        if new or self._log.marks != self._marks:
            self._moved, self._marks = self._clock(), self._log.marks
        self._tell_damage()
        self._ctx.progress(min(self.done, self.steps), self.steps, **self._progress_figures())

    @property
    def seconds_still(self) -> float:
        """For how long nothing has moved."""
        return self._clock() - self._moved

    @property
    def is_stalled(self) -> bool:
        return self.seconds_still > self._stall_seconds

    def explain_stall(self) -> Problem:
        """Why the run was ended, and where to look for what it waited for."""
        settings, size = self._settings, self._settings.group_size
        cohort = settings.get(f"{COMPARE}.num_rollouts_per_prompt")
        fix = "look at the judge's own lines in the log, and whether all of its GPUs were there"
        if settings.uses_gym:
            fix += (
                f"; a group is judged when all of its answers have come:"
                f" num_rollouts_per_prompt is {cohort}, grpo.num_generations_per_prompt is {size}"
            )
        return Problem(
            where="NeMo-RL",
            key="nemo_rl.stall_minutes",
            what=f"nothing moved for {self.seconds_still / 60:.3g} minutes after step {self.done}"
            f" of {self.steps}; the last that it said was {self._log.phase or 'nothing'!r}",
            allowed=f"{self._stall_seconds / 60:.3g} minutes",
            fix=fix,
        )

    def _report(self, step: int, metrics: dict[str, float], *, speak: bool = True) -> None:
        if LENGTH in metrics:
            metrics |= self._derive(step, metrics)
            alerts = find_alerts(metrics | self._assumed(metrics))
            for alert in alerts:
                if speak and alert.name not in self._shown_alerts:
                    self._ctx.say(f"step {step}: {alert}")
                self._shown_alerts.add(alert.name)
            metrics |= {f"hacking/sign_{alert.name}": 1.0 for alert in alerts}
            self._figures = metrics
        self._ctx.metrics.log(step, **metrics)

    def _derive(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """What the embedded loop measures itself, from what NeMo-RL and NeMo-Gym say."""
        self._start_tokens = self._start_tokens or metrics[LENGTH]
        derived = {"start_tokens": self._start_tokens}
        if self._settings.get("loss_fn.reference_policy_kl_penalty") and "kl_penalty" in metrics:
            # NeMo-RL sums the metrics of the loss over the updates of a step.
            derived["hacking/kl_to_start"] = metrics["kl_penalty"] / self._settings.updates
        if not self._settings.uses_gym:
            return derived
        counts: dict[str, float] = dict(self._log.failures(step))
        if counts:
            self._notes[str(step)] = counts
            write_state(self._notes_path, self._notes)
        counts = counts or self._notes.get(str(step), {})
        given_up = sum(counts.get(kind, 0.0) for kind in GIVEN_UP)
        derived |= {f"judge/{kind}": float(count) for kind, count in counts.items()}
        derived["judge/given_up"] = given_up
        derived["judge/failed_share"] = given_up / max(1, self._settings.comparisons)
        return derived

    def _assumed(self, metrics: dict[str, float]) -> dict[str, float]:
        """What the alerts ask for and nobody measured, by what bounds it from below.

        A comparison is given up when the last of several answers cannot be read.
        """
        unreadable = metrics.get("judge/given_up_unparseable", 0.0)
        return {"judge/parse_failure_rate": unreadable / max(1, self._settings.comparisons)}

    def _progress_figures(self) -> dict[str, float]:
        figures = {**self._figures, **self._log.figures}
        return {label: figures[name] for name, label in SHOWN.items() if name in figures}

    def _tell_damage(self) -> None:
        for line in set(self._events.damage) - self._shown_damage:
            self._shown_damage.add(line)
            self._ctx.say(f"no metrics any more from an event file: {line}")


def follow(process: ChildProcess, watch: Watch, ctx: StepContext) -> None:
    """Return when the script has ended well.

    Raises Interrupted when the run was asked to stop, or NeMo-RL stopped itself for lack of time,
    and StepFailed when the script failed or nothing moved any more; it is ended first.
    """
    try:
        while (code := process.wait(SECONDS_BETWEEN_LOOKS)) is None:
            watch.look()
            if ctx.stopping:
                process.stop()
                raise Interrupted(_explain_stop(watch))
            if watch.is_stalled and watch.done >= watch.steps:
                ctx.say("all steps are done, and the script does not end by itself: it is ended")
                process.stop()
                return
            if watch.is_stalled:
                problem = watch.explain_stall()
                process.stop()
                raise StepFailed(problem)
    finally:
        watch.look(last=True)
    if ctx.stopping:  # the signal reached the script too, which ended by it
        raise Interrupted(_explain_stop(watch))
    if code != 0:
        ending = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        lines = "".join(f"\n    {line}" for line in process.tail)
        what = f"its script {ending} after step {watch.done} of {watch.steps}"
        fix = f"the same command continues from the newest checkpoint; its last lines:{lines}"
        raise StepFailed(Problem(where="NeMo-RL", what=what, fix=fix))


def _explain_stop(watch: Watch) -> str:
    return f"stopped after step {watch.done} of {watch.steps}; the same command continues"
