"""The lines of ``launch.sh`` that read secrets, as bash runs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_style.runtime.launch.launch_sh import read_secrets


def run_lines(plan: Any, path: Path) -> subprocess.CompletedProcess[str]:
    plan = plan.model_copy(update={"site": {"secrets_file": str(path)}, "secrets": ("A_TOKEN",)})
    text = f'set -euo pipefail\n{read_secrets(plan)}\nprintf %s "$A_TOKEN"\n'
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        Path.mkdir,
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: None,
    ],
)
def test_what_is_no_file_of_secrets_is_refused_and_not_waited_for(
    mill: Any, tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    path = tmp_path / "secrets"
    make(path)
    if not path.is_symlink() and path.exists():
        path.chmod(0o600)
    done = run_lines(mill.compile("mill/grow").target.plan, path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"{path}: must be a file of mode 600"


def test_a_file_of_mode_600_is_read(mill: Any, tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    path.write_text("B_TOKEN=b\nA_TOKEN=a b")
    path.chmod(0o600)
    assert run_lines(mill.compile("mill/grow").target.plan, path).stdout == "a b"
