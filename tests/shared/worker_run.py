"""A pipeline of the mill, carried out in this process."""

from __future__ import annotations

from typing import Any

from nemotron_style.runtime.run.folder import RunFolder
from nemotron_style.runtime.worker import main as worker_main


def carry_out(mill: Any, step: str, *overrides: str) -> tuple[int, RunFolder]:
    """Plan ``step`` and what it needs, and work on them in this process."""
    code, folder = 0, RunFolder(mill.root)
    for run in mill.compile(step, *overrides).runs:
        folder = RunFolder(run.plan.run_dir)
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.path / "plan.json").write_text(run.plan.to_json())
        code = worker_main.main([str(folder.path / "plan.json")])
    return code, folder
