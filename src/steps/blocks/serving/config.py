"""Settings that services share: where they listen, the token they ask for, their limits."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from nemotron_style.runtime.config.model import Section, StepConfig
from nemotron_style.steps.blocks.http.endpoint import is_loopback


class RequestLimits(Section):
    """What one client may ask for, and how long it may take."""

    body_bytes: int = Field(default=8_388_608, ge=1024)
    connections: int = Field(default=512, ge=1)
    idle_seconds: float = Field(default=120.0, gt=0, description="until a request has begun")
    read_seconds: float = Field(default=30.0, gt=0, description="for a whole body")
    answer_seconds: float = Field(default=600.0, gt=0, description="from request to answer")


class ScoreLimits(RequestLimits):
    """And how many conversations may come in one request."""

    conversations: int = Field(default=256, ge=1, description="conversations in a request")


class ChatLimits(RequestLimits):
    """And how long an answer may be."""

    completion_tokens: int = Field(
        default=4096, ge=1, description="in an answer; also what it may have unasked"
    )


class ServiceConfig(StepConfig):
    """A model that answers over HTTP until it is stopped."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(ge=0, le=65535, description="0: any that is free")
    token_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="environment variable that holds the bearer token",
    )
    drain_seconds: float = Field(default=60.0, ge=0, description="for answers after a stop")

    @model_validator(mode="after")
    def _outside_takes_a_token(self) -> Self:
        if self.token_env is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached by others, who must be asked for a token: "
                "name the environment variable that holds it in token_env"
            )
        return self
