"""CPU seconds of the commands people wait for, each in a process of its own.

``python bench/command_line.py`` prints the best of several runs, user plus system time of the
child; ``smoke`` makes it one run. Two peers stand beside them: an interpreter that does nothing,
and one that imports torch. What a recipe imports is what every step of training pays at its start.
Python keeps what it compiled, whatever the shell says, as it does where the program is installed:
else each command would compile our sources anew, which takes a quarter of its time.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile

ROUNDS = 1 if "smoke" in sys.argv[1:] else 5
CLI = [sys.executable, "-m", "nemotron_style.runtime"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    "import of sft/steerlm2's recipe": [
        sys.executable, "-c", "import nemotron_style.steps.sft.steerlm2.recipe",
    ],
    "--help": [*CLI, "--help"],
    "steps list": [*CLI, "steps", "list"],
    "steps show sft/steerlm2": [*CLI, "steps", "show", "sft/steerlm2"],
    "steps run sft/steerlm2 -c tiny --dry-run": [
        *CLI, "steps", "run", "sft/steerlm2", "-c", "tiny", "--dry-run",
    ],
}  # fmt: skip


def cpu_seconds(command: list[str], *, home: str) -> float:
    """User plus system seconds of one run of ``command``."""
    environment = {**os.environ, "NEMOTRON_STYLE_HOME": home}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a line a command: best and median of :data:`ROUNDS`."""
    with tempfile.TemporaryDirectory() as home:
        for name, command in COMMANDS.items():
            seconds = sorted(cpu_seconds(command, home=home) for _ in range(ROUNDS))
            print(f"{name:45s} best {seconds[0]:.3f} s   median {seconds[ROUNDS // 2]:.3f} s")


if __name__ == "__main__":
    main()
