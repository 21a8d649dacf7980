"""NeMo-RL's own loader and classes take what is compiled for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_rl_configs import CASES, compile_case
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import CONFIG_FILE, JobVariable

SOURCE = os.environ.get("NEMO_RL_SOURCE")
READER = Path(__file__).parents[1] / "shared" / "nemo_rl_reader.py"
UNCHECKED = ["grpo.max_val_samples"]
"""v0.6.0 declares a whole number and demands null; it checks the first nowhere."""


@pytest.mark.skipif(not SOURCE, reason="NEMO_RL_SOURCE names no folder of NeMo-RL's sources")
@pytest.mark.parametrize("version", ["v0.6.0", "v0.7.0", "head"])
def test_nemo_rl_accepts_what_is_compiled(version: str, tmp_path: Path) -> None:
    source = Path(str(SOURCE)) / version
    if not (source / "nemo_rl").is_dir():
        pytest.skip(f"{source} holds no nemo_rl")
    paths = [tmp_path / f"{case}.yaml" for case in CASES if case.startswith(f"{version}-")]
    for path in paths:
        path.write_text(compile_case(path.stem).files[CONFIG_FILE], encoding="utf-8")
    filled = {name: f"/job/{name.lower()}" for name in JobVariable}
    filled[JobVariable.PRETRAINED_FORMAT] = "megatron_bridge"
    command = [os.environ.get("NEMO_RL_PYTHON", sys.executable), READER, source, *paths]
    done = subprocess.run(
        list(map(str, command)),
        env=os.environ | filled,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused = json.loads(done.stdout.splitlines()[-1])
    assert len(refused) == 6
    assert refused == dict.fromkeys(map(str, paths), UNCHECKED if version == "v0.6.0" else [])
