"""What is kept of a request that carries an Idempotency-Key, so that sending it again is harmless."""

from __future__ import annotations

from pydantic import Field, JsonValue

from schemas.values import ImageId, Value

IDEMPOTENCY = "idempotency/"
"""Where it is kept: `idempotency/{owner}/{sha256 of the key}/{attempt}.json`."""


class Attempt(Value):
    """One attempt at a request. The next one goes on with the same image ids. Times are unix seconds."""

    attempt: int = Field(ge=1)
    token: str = Field(description="of whoever makes the attempt")
    fingerprint: str = Field(description="sha256 of all the request says")
    image_ids: tuple[ImageId, ...] = Field(description="of the images it makes, chosen before")
    lease_until: float = Field(description="when whoever makes the attempt has died, if they have not said more")
    expires_at: float = Field(description="when the key may be used for another request")
    status: int | None = Field(None, description="of the answer, once there is one")
    answer: dict[str, JsonValue] | None = None
