"""Settings of rate limits and quotas, read from DARKROOM_LIMITS__* and DARKROOM_QUOTAS__* at the composition root."""

from __future__ import annotations

from typing import Annotated

from limits import RateLimitItem, parse_many
from pydantic import AfterValidator, Field, SecretStr

from streams.settings import Group

UNLIMITED = "none"
"""What a limit is set to for there to be none."""


def parse_limits(text: str) -> tuple[RateLimitItem, ...]:
    """Return the limits a text like `50/hour` or `10/minute; 50/hour` says, none for `none`. Raises ValueError."""
    if text.strip().lower() == UNLIMITED:
        return ()
    found = tuple(parse_many(text))
    if any(limit.amount < 1 for limit in found):
        raise ValueError(f"a limit must allow something: {text!r}")
    return found


def _checked(text: str) -> str:
    parse_limits(text)
    return text


Limit = Annotated[str, AfterValidator(_checked)]
"""How often something may be done: `50/hour`, `10/minute; 50/hour`, or `none`."""


def _redis(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("begins with redis://, rediss:// (TLS) or unix://")
    return url


class RateLimitSettings(Group):
    """How much each owner may do in any stretch of time, and where that is counted."""

    uploads: Limit = Field(
        "50/hour", description="images of one owner, by upload or URL; `none` = as many as they like"
    )
    requests: Limit = Field("none", description="requests of one owner to the API, of any kind")
    features: Limit = Field("none", description="images of one owner sent for their features alone")
    redis_url: Annotated[SecretStr, AfterValidator(_redis)] | None = Field(
        None, description="redis://… or rediss://…, where all gateways count together; empty = each counts by itself"
    )
    redis_timeout_s: float = Field(1.0, gt=0, description="seconds Redis may take; then this gateway counts by itself")


class QuotaSettings(Group):
    """How much each owner may keep. Deleting images makes room."""

    images: int | None = Field(None, ge=1, description="images one owner may have; empty = any number")
    bytes: int | None = Field(None, ge=1, description="bytes of originals one owner may have; empty = any number")
    recount_s: float = Field(
        60.0, gt=0, description="seconds after which an owner's objects are counted again; between, by own uploads"
    )
