"""Bodies of the health and landing endpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.values import Value


class Landing(Value):
    """The system and its ways in."""

    name: str = Field(examples=["darkroom"])
    version: str = Field(examples=["1.0.0"])
    docs: str = Field(description="the API's page for people")
    openapi: str = Field(description="the API's document")
    ways_in: dict[str, str] = Field(
        description="what for: method and path", examples=[{"upload": "POST /api/v1/images/upload"}]
    )


class PartHealth(Value):
    """How one part of the system does."""

    ok: bool
    detail: str = Field("", examples=["objects can be written and read"])
    state: Literal["ok", "degraded", "down"] | None = Field(
        None, description="degraded: it works with less than it should, or answers but is left alone after failures"
    )
    latency_ms: float | None = Field(None, description="of the question it was just asked", examples=[4.2])
    breaker: Literal["closed", "half-open", "open"] | None = Field(
        None, description="of a dependency: open = calls are refused for a while; half-open = one call finds out"
    )


class Health(Value):
    """How the system does. `ready` = an upload would be carried to its end."""

    status: str = Field(examples=["ok", "degraded", "unready"])
    ready: bool
    version: str
    parts: dict[str, PartHealth]
