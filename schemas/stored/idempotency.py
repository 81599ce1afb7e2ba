"""The stored state of a request with an Idempotency-Key, which makes a repeat harmless."""

from __future__ import annotations

from pydantic import Field, JsonValue

from schemas.values import ImageId, Value

IDEMPOTENCY = "idempotency/"
"""Object key: `idempotency/{owner}/{sha256 of the key}/{attempt}.json`."""


class Attempt(Value):
    """One attempt of a request. The next attempt reuses its image ids. Times are unix seconds."""

    attempt: int = Field(ge=1)
    token: str = Field(description="token of the process that makes the attempt")
    fingerprint: str = Field(description="sha256 of the whole request")
    image_ids: tuple[ImageId, ...] = Field(description="image ids, chosen before the attempt")
    lease_until: float = Field(description="end of the attempt's lease, unless renewed")
    expires_at: float = Field(description="when the key may be used for another request")
    status: int | None = Field(None, description="status of the answer, once there is one")
    answer: dict[str, JsonValue] | None = None
