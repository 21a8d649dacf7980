"""The mill, whose steps take the names of trackers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from nemotron_style.runtime.run.attempt import ATTEMPT_VARIABLE
from nemotron_style.runtime.worker import openlineage_transport, tracking, wandb_client

TRACKED = """
    trackers_named: tuple[str, ...] = cosmetic(())

    def trackers(self):
        more = {"tags": {"team": "bakers"}}
        return {
            name: Tracker("trackers_named", "mill", more=more if name == "mlflow" else {})
            for name in self.trackers_named
        }
"""


@pytest.fixture
def tracked(mill: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The mill, whose steps take the names of trackers."""
    config = mill.root / "code/milling/config.py"
    text = config.read_text().replace("import Section", "import Section, Tracker")
    config.write_text(text + TRACKED)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "OPENLINEAGE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in (ATTEMPT_VARIABLE, "OPENLINEAGE_NAMESPACE", "OPENLINEAGE_PARENT_ID"):
        monkeypatch.delenv(name, raising=False)
    # However busy the machine is, a tracker on it is not given up.
    monkeypatch.setattr(openlineage_transport, "SECONDS", 120.0)
    monkeypatch.setattr(tracking, "SECONDS_TO_END", 240.0)
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "240")
    for name in ("init_timeout", "finish_timeout"):
        monkeypatch.setitem(wandb_client.QUIET, name, 240.0)  # type: ignore[arg-type]
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield mill
    for number, handler in before.items():
        signal.signal(number, handler)
