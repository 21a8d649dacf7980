"""``python -m nemotron_style.runtime.worker <run dir>/plan.json`` is the inside of a run."""

import os
import sys
from typing import NoReturn

from nemotron_style.runtime.worker.main import main


def leave(code: int) -> NoReturn:
    """End this process; one that is a rank of torch is not taken apart before.

    Threads of gloo that still run would abort it then, although all is done, and torchrun would
    kill the ranks that are still committing.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":  # checkpointing spawns processes, which import this module again
    leave(main(sys.argv[1:]))
