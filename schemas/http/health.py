"""HTTP bodies of the health and landing endpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.values import Value


class Landing(Value):
    """The system's entry points."""

    name: str = Field(examples=["darkroom"])
    version: str = Field(examples=["1.0.0"])
    docs: str = Field(description="the API's documentation page")
    openapi: str = Field(description="the API's OpenAPI document")
    ways_in: dict[str, str] = Field(
        description="purpose: method and path", examples=[{"upload": "POST /api/v1/images/upload"}]
    )


class PartHealth(Value):
    """Health of one part of the system."""

    ok: bool
    detail: str = Field("", examples=["objects can be written and read"])
    state: Literal["ok", "degraded", "down"] | None = Field(
        None, description="degraded: works with limits, or answers while its circuit breaker is open"
    )
    latency_ms: float | None = Field(None, description="milliseconds of the latest check", examples=[4.2])
    breaker: Literal["closed", "half-open", "open"] | None = Field(
        None, description="circuit breaker of a dependency: open = calls are refused; half-open = one trial call"
    )


class Health(Value):
    """Health of the system. `ready` = an upload would be processed to its end."""

    status: str = Field(examples=["ok", "degraded", "unready"])
    ready: bool
    version: str
    parts: dict[str, PartHealth]
