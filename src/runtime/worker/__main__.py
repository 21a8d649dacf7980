"""``python -m nemotron_style.runtime.worker <run dir>/plan.json`` is the inside of a run."""

import sys

from nemotron_style.runtime.worker.main import main

if __name__ == "__main__":  # checkpointing spawns processes, which import this module again
    sys.exit(main(sys.argv[1:]))
