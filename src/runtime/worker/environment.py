"""What a run was made with besides its code: software versions and hardware, for the record."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from typing import Any

PACKAGES = ("nemotron-style", "torch", "megatron-core", "numpy", "tokenizers", "safetensors")


def describe_environment() -> dict[str, Any]:
    """Python and the packages that can change a result, by version; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_hardware() -> dict[str, Any]:
    """Cores this process may use, memory in bytes, platform; GPUs where the step uses them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A step that did not load torch used no GPU through it; loading it here would take seconds.
    torch = sys.modules.get("torch")
    count = torch.cuda.device_count() if torch and torch.cuda.is_available() else 0
    return {
        "cores": count_cores(),
        "memory": memory,
        "platform": platform.platform(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)] if torch else [],
    }


def count_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))
