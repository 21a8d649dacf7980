"""How long a step waits for a service; readable without torch and without an HTTP client."""

from __future__ import annotations

from nemotron_style.runtime.config.model import Section, cosmetic


class Waiting(Section):
    """``waiting``: how long and how often a service is asked; see ``http.retry.RetryPolicy``."""

    ready_seconds: float = cosmetic(default=600.0, gt=0, description="until it must be ready")
    tries: int = cosmetic(default=8, ge=1, description="of each request")
    timeout: float = cosmetic(default=120.0, gt=0, description="seconds of one try")
    first_pause: float = cosmetic(default=0.5, ge=0, description="seconds; doubled each time")
    longest_pause: float = cosmetic(default=30.0, ge=0)
