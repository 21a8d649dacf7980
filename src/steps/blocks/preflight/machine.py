"""What this machine has, without torch: its GPUs and its memory."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nemotron_style.runtime.errors import Problem
from nemotron_style.runtime.step.compiled import JobSite

# WSL, AMD and Jetson have GPUs behind these, which are not counted here.
_OTHER_DEVICES = ("/dev/dxg", "/dev/kfd", "/dev/nvhost-gpu")
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Machine:
    """GPUs that a job may use here, and bytes of memory; None where that is not known."""

    gpus: int | None = None
    gpu_bytes: int | None = None
    ram_bytes: int | None = None


@cache
def look_at_machine() -> Machine:
    """What there is on this machine."""
    gpus = count_gpus()
    return Machine(gpus, _read_gpu_memory() if gpus else None, _read_ram())


def count_gpus() -> int | None:
    """The NVIDIA GPUs that a process here sees; None where other means would be needed to tell."""
    if not sys.platform.startswith("linux") or any(map(os.path.exists, _OTHER_DEVICES)):
        return None
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    # Devices after one that is not there, which is how some say "none", are not seen.
    names = [name.strip() for name in visible.split(",")]
    listed = next((at for at, name in enumerate(names) if name in ("", "-1")), len(names))
    return min(present, listed)


def _read_gpu_memory() -> int | None:
    """Bytes of the smallest GPU, as its driver says."""
    import subprocess  # no plan without a GPU pays for it

    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
        return min(int(line) for line in done.stdout.split()) << 20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _read_ram() -> int | None:
    """Bytes of the machine, or of the container that this process is in."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError):
        return None
    for name in _CGROUP_LIMITS:
        try:
            limits.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # "max" is no limit
            continue
    return min(limits)


def check_vllm(site: JobSite, *, key: str) -> Iterator[Problem]:
    """vLLM, which a job is to sample with, is missing from the interpreter that runs it here.

    Nothing is said of an interpreter that the profile names, nor of an image.
    """
    ours = site.executor == "local" and site.image is None and site.python is None
    if ours and importlib.util.find_spec("vllm") is None:
        fix = f"set {key}=in_process, or choose a profile whose python has vLLM, see "
        yield Problem(key=key, what="vLLM is not installed", fix=fix + "docs/generation.md")


def check_devices(
    machine: Machine, *, half: bool, processes: int, keys: tuple[str, str], fix: str
) -> list[Problem]:
    """Why a job of so many ``processes`` cannot run here; ``keys`` are of precision and processes.

    Without a GPU a job runs on the CPU, in float32 and in any number of processes.
    """
    if half and machine.gpus == 0:
        what = "bfloat16 keeps float32 master weights, which needs a CUDA device, and this machine "
        what += "has none"
        fix += ", or choose a profile of a machine with GPUs: -r PROFILE"
        return [Problem(key=keys[0], what=what, got="bfloat16", fix=fix)]
    if machine.gpus and processes > machine.gpus:
        what = "each process drives a GPU of its own, and this machine has fewer"
        got, allowed = f"{processes} processes", f"up to {machine.gpus}"
        return [Problem(key=keys[1], what=what, got=got, allowed=allowed)]
    return []
