"""In which order test files run, and which of them share what only one worker can have."""

from __future__ import annotations

SLOWEST = (
    "tests/e2e/test_judge_card.py",
    "tests/slurm/",
    "tests/vllm/",
    "tests/e2e/test_rs_actor_cli.py",
    "tests/e2e/test_steerlm2_kill.py",
    "tests/e2e/test_steerlm2.py",
    "tests/integration/test_detached.py",
    "tests/lepton/",
    "tests/e2e/test_reward_regression_kill.py",
    "tests/e2e/test_rlhf_kill.py",
    "tests/e2e/test_smollm2.py",
    "tests/e2e/",
    "tests/integration/",
)
"""Beginnings of paths of test files; what comes last must be short, or a worker idles."""

SHARED = {
    "ranks": (
        "tests/e2e/test_convert.py",
        "tests/integration/test_activations.py",
        "tests/integration/test_card_ranks.py",
        "tests/integration/test_families.py",
        "tests/integration/test_layouts.py",
        "tests/integration/test_parallel.py",
        "tests/integration/test_regression_invariance.py",
        "tests/integration/test_rlhf_invariance.py",
        "tests/integration/test_rs_invariance.py",
        "tests/integration/test_steerlm2_invariance.py",
    ),
    "slurm": ("tests/slurm/",),
}
"""Files that use one costly thing: a cluster, or a process that has imported megatron-core."""


COVERED = ("tests/unit/runtime/", "tests/integration/", "tests/lepton/")
"""What counts for the coverage of the runtime; of processes that tests start nothing is counted."""

UNCOVERED = (
    *SHARED["ranks"],
    "tests/integration/test_judge_serve.py",
    "tests/integration/test_nemo_rl",
    "tests/integration/test_reward_serve.py",
)
"""Of these, what is about steps: every line of torch would be looked at."""


def is_covered(nodeid: str) -> bool:
    """Whether the lines that a test executes count."""
    return nodeid.startswith(COVERED) and not nodeid.startswith(UNCOVERED)


def place(nodeid: str) -> int:
    """Where a test stands in the order, by its file."""
    return next((n for n, path in enumerate(SLOWEST) if nodeid.startswith(path)), len(SLOWEST))


def unit_of(nodeid: str) -> str:
    """What a worker takes as a whole: a file, or all files that share something."""
    shared = (name for name, paths in SHARED.items() if nodeid.startswith(paths))
    return next(shared, nodeid.partition("::")[0])
