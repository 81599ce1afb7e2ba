"""How much an owner uses, and may."""

from __future__ import annotations

from pydantic import Field

from schemas.values import Value


class Amount(Value):
    """How much of something there is, and may be."""

    used: int | None = Field(description="null: not counted, for there is no quota", examples=[120])
    allowed: int | None = Field(description="null: any number", examples=[1000])


class LimitView(Value):
    """Where the caller stands with one rate limit."""

    name: str = Field(description="as in the header RateLimit", examples=["uploads"])
    limit: int = Field(description="uses within the window", examples=[50])
    window_s: int = Field(description="seconds of the window, which moves", examples=[3600])
    remaining: int = Field(examples=[38])
    reset_s: int = Field(description="seconds until there is one more", examples=[2410])


class UsageView(Value):
    """What the caller's owner keeps, against the quotas, and the caller's rate limits."""

    images: Amount
    bytes: Amount = Field(description="of originals; the same bytes twice are counted once")
    limits: tuple[LimitView, ...] = Field(description="empty: there are none")
