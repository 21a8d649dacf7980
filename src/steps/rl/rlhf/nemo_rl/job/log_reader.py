"""What NeMo-RL's output tells before its event files do: steps, phases, and failed judgements.

Lines of the driver are NeMo-RL's; those of its actors begin with ``(Name pid=...)`` and tell of no
progress: an engine that waits for ever still reports its throughput.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

STEP_DONE = "Training Results:"
TIMEOUT = "Timeout has been reached, stopping training early"
ACTOR = re.compile(r"\((\w+ )?pid=\d+")
PHASE = re.compile(r"^\s*(▶|📊|🔍|✓|✅|🚀|={20,} \w|Saving checkpoint|Setting up)")
FIGURE = re.compile(r"^\s*• (Loss|Avg Reward|Generation KL Error|Mean Generation Length): (\S+)")
FIGURES = {
    "Loss": "loss",
    "Avg Reward": "reward",
    "Generation KL Error": "gen_kl_error",
    "Mean Generation Length": "mean_gen_tokens_per_sample",
}
REPEATED = re.compile(r"\[repeated (\d+)x across cluster\]")
JUDGE_FAILURES = {
    "[GenRM] Parse failed for pair": "given_up_unparseable",
    "[GenRM] Error in comparison for pair": "given_up_error",
    "[GenRM] Cohort compare failed": "failed_cohorts",
}
"""What NeMo-Gym writes when a comparison, or a group, gets a default score and no verdict."""


@dataclass
class LogReader:
    """What the lines so far have told; ``done`` counts finished steps, earlier attempts included.

    ``marks`` grows with every sign of progress; ``figures`` are the newest ones.
    """

    done: int = 0
    marks: int = 0
    phase: str = ""
    timed_out: bool = False
    figures: dict[str, float] = field(default_factory=dict)
    judge: dict[int, Counter[str]] = field(default_factory=dict)
    _untaken: dict[int, dict[str, float]] = field(default_factory=dict, repr=False)

    def feed(self, line: str) -> None:
        """Take in one line of output."""
        self._count_judge_failures(line)
        if ACTOR.match(line):
            return
        if PHASE.match(line):
            self.marks, self.phase = self.marks + 1, line.strip(" =▶")
        self.timed_out = self.timed_out or TIMEOUT in line
        if STEP_DONE in line:  # the figures of the step are the lines after it
            self.done += 1
        elif match := FIGURE.match(line):
            self._note_figure(FIGURES[match[1]], match[2])

    def take_figures(self) -> dict[int, dict[str, float]]:
        """The figures that came since the last call, by step."""
        taken, self._untaken = self._untaken, {}
        return taken

    def failures(self, step: int) -> Counter[str]:
        """Failed judgements of a step, by kind."""
        return Counter(self.judge.get(step, {}))

    def _note_figure(self, name: str, text: str) -> None:
        try:
            self.figures[name] = float(text)
        except ValueError:
            self.figures.pop(name, None)
        else:
            self._untaken.setdefault(self.done, {})[name] = self.figures[name]

    def _count_judge_failures(self, line: str) -> None:
        for words, kind in JUDGE_FAILURES.items():
            if words in line:
                repeated = REPEATED.search(line)
                step = self.judge.setdefault(self.done + 1, Counter())
                step[kind] += int(repeated[1]) if repeated else 1
