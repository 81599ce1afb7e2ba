"""An owner's usage and quotas."""

from __future__ import annotations

from pydantic import Field

from schemas.values import Value


class Amount(Value):
    """Usage and quota of one resource."""

    used: int | None = Field(description="null: not counted, since there is no quota, or not yet", examples=[120])
    allowed: int | None = Field(description="null: unlimited", examples=[1000])


class LimitView(Value):
    """State of one rate limit of the caller."""

    name: str = Field(description="as in the header RateLimit", examples=["uploads"])
    limit: int = Field(description="uses within the window", examples=[50])
    window_s: int = Field(description="seconds of the sliding window", examples=[3600])
    remaining: int = Field(examples=[38])
    reset_s: int = Field(description="seconds until one more use is allowed", examples=[2410])


class UsageView(Value):
    """Storage usage of the caller's owner against the quotas, and the caller's rate limits."""

    images: Amount
    bytes: Amount = Field(description="bytes of originals; equal bytes count once")
    limits: tuple[LimitView, ...] = Field(description="empty: no limits")
