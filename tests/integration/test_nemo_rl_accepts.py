"""NeMo-RL's and NeMo-Gym's own code take what is compiled for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_rl_configs import CASES, CASES_WITHOUT_GYM, compile_case
from nemotron_style.steps.rl.rlhf.nemo_rl.job_variables import CONFIG_FILE, JobVariable

SHARED = Path(__file__).parents[1] / "shared"
PYTHON = os.environ.get("NEMO_RL_PYTHON", sys.executable)
UNCHECKED = ["grpo.max_val_samples"]
"""v0.6.0 declares a whole number and with NeMo-Gym demands null; it checks the first nowhere."""
SERVERS = {"genrm_compare_resources_server", "genrm_model", "genrm_simple_agent", "policy_model"}


def find_source(variable: str, version: str, package: str) -> Path:
    """The tree of a version; the test is skipped where there is none."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no folder of sources")
    source = Path(folder) / version
    if not (source / package).is_dir():
        pytest.skip(f"{source} holds no {package}")
    return source


def read_all(
    reader: str, source: Path, version: str, folder: Path, cases: list[str]
) -> dict[str, Any]:
    """What a reader says about every case of a version, by the name of the case."""
    paths = [folder / f"{case}.yaml" for case in cases if case.startswith(f"{version}-")]
    for path in paths:
        path.write_text(compile_case(path.stem).files[CONFIG_FILE], encoding="utf-8")
    filled = {name: f"/job/{name.lower()}" for name in JobVariable}
    filled[JobVariable.PRETRAINED_FORMAT] = "megatron_bridge"
    done = subprocess.run(
        list(map(str, [PYTHON, SHARED / reader, source.resolve(), *paths])),
        env=os.environ | filled,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer) == len(paths)
    return {Path(path).stem: value for path, value in answer.items()}


@pytest.mark.parametrize("version", ["v0.6.0", "v0.7.0", "head"])
def test_nemo_rl_accepts_what_is_compiled(version: str, tmp_path: Path) -> None:
    source = find_source("NEMO_RL_SOURCE", version, "nemo_rl")
    refused = read_all("nemo_rl_reader.py", source, version, tmp_path, CASES + CASES_WITHOUT_GYM)
    assert {case for case in refused if "no_gym" in case}
    for case, keys in refused.items():
        assert keys == (UNCHECKED if case.startswith("v0.6.0") and "no_gym" not in case else [])


@pytest.mark.parametrize("version", ["v0.6.0", "v0.7.0", "head"])
def test_nemo_gym_finds_every_server_that_is_named(version: str, tmp_path: Path) -> None:
    source = find_source("NEMO_GYM_SOURCE", version, "nemo_gym")
    blocks = read_all("nemo_gym_reader.py", source, version, tmp_path, CASES)
    assert all(set(names) >= SERVERS for names in blocks.values())
