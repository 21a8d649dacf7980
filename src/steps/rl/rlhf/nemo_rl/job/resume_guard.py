"""Whether a run may continue from the checkpoints that lie there, and from which of them.

NeMo-RL continues from any ``step_N`` that it finds, whatever made it.  So what the run is made of
is noted beside the checkpoints, and compared before they are used again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from nemotron_style.runtime.errors import InputError, Problem, raise_all
from nemotron_style.runtime.step.state_file import read_state, write_state
from nemotron_style.steps.rl.rlhf.nemo_rl.job.checkpoints import (
    StepCheckpoint,
    clear_leftovers,
    whole_checkpoints,
)
from nemotron_style.steps.rl.rlhf.nemo_rl.version import Version

FACTS = "made_of.json"


def find_resume(
    folder: Path,
    made_of: Mapping[str, str | None],
    *,
    version: Version,
    aside: Path,
    say: Callable[[str], None],
) -> StepCheckpoint | None:
    """The newest whole checkpoint to continue from, None for a new run; halves are moved aside.

    ``made_of`` has digests and names of what makes the run.  Raises InputError, with all that
    differs, when checkpoints in the folder were made of something else.
    """
    for line in clear_leftovers(folder, aside, version):
        say(line)
    whole = whole_checkpoints(folder)
    if whole:
        check_facts(folder, made_of, newest=whole[-1])
    write_state(folder / FACTS, dict(made_of))
    if whole:
        say(f"continuing from {whole[-1].path.name}")
    return whole[-1] if whole else None


def check_facts(folder: Path, made_of: Mapping[str, str | None], *, newest: StepCheckpoint) -> None:
    """Raise InputError when the checkpoints of ``folder`` were made of anything else."""
    noted = read_state(folder / FACTS)
    if noted is None:
        what = f"has {newest.path.name}, and nothing says what it was made of"
        fix = "move the checkpoints elsewhere, or take another folder"
        raise InputError(Problem(where=str(folder), what=what, fix=fix))
    problems = [
        Problem(
            where=str(folder),
            key=name,
            what=f"{newest.path.name} was made of another one, and would be continued with it",
            got=str(made_of.get(name)),
            allowed=str(noted.get(name)),
            fix="take a new run for it (--fresh), or go back to what the checkpoint was made of",
        )
        for name in dict.fromkeys([*noted, *made_of])
        if noted.get(name) != made_of.get(name)
    ]
    raise_all(InputError, problems)
