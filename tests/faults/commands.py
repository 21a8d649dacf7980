"""A command line in this process."""

from __future__ import annotations

import io
import os
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from nemotron_style.runtime.cli import main


def run_command(root: str | Path, *words: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command with this store, in ``folder``."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, {"NEMOTRON_STYLE_HOME": str(root)}),
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = main(list(words))
    return code, out.getvalue(), err.getvalue()
