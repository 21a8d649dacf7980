"""Plans whose every word is fixed, for tests of launchers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron_style.runtime.run.plan import Plan, identify, name_run

IDENTITY = {
    "step": "mill/bake",
    "manifest_version": "1",
    "config": {"steps": 40, "mill": {"speed": 1}},
    "inputs": {"input": "run:mill-grind-0123456789ab/sack"},
    "code": "a" * 64,
    "generation": 0,
}


def build_plan(usual: Mapping[str, Any], **changes: Any) -> Plan:
    """A plan of one machine. ``usual`` is what all plans of a launcher have, ``changes`` this one.

    Where ``changes`` name services, their plan is a usual one beside the step.
    """
    identity = {"step": "sft/chat", "config": {}, "inputs": {}, "code": "c0de", "generation": 0}
    fingerprint = identify(identity)
    store = changes.get("store", "/mnt/shared/store")
    fixed: dict[str, Any] = {
        "run_id": name_run("sft/chat", fingerprint),
        "step": "sft/chat",
        "config_name": "tiny",
        "config": {"seed": 1},
        "inputs": (),
        "outputs": ({"slot": "model", "kind": "stone", "name": "chat"},),
        "entrypoint": "milling.recipe:run",
        "config_class": "milling.config:Config",
        "launch": "python",
        "resources": {"nodes": 1, "processes": 1},
        "python": "/opt/venv/bin/python",
        "image": None,
        "env": {"OMP_NUM_THREADS": "1"},
        "secrets": (),
        "profile": "site",
        "store": store,
        "workdir": f"{store}/work",
        "arguments": (),
        "identity": identity,
        "fingerprint": fingerprint,
        **usual,
    }
    whole = {**fixed, **changes}
    if whole.get("services"):
        beside = f"{whole['run_id']}/services/reward"
        whole["services"] = {"reward": Plan(**{**fixed, "store": store, "beside": beside})}
    return Plan(**whole)


def snapshot_in(store: str) -> dict[str, str]:
    """A copy of the code in ``store``."""
    return {"path": f"{store}/code/0123456789abcdef", "digest": "0123456789abcdef" * 4}
