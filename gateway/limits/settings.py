"""Settings of rate limits and quotas, read from DARKROOM_LIMITS__* and DARKROOM_QUOTAS__* at the composition root."""

from __future__ import annotations

from typing import Annotated

from limits import RateLimitItem, parse_many
from pydantic import AfterValidator, Field, SecretStr

from streams.settings import Group

UNLIMITED = "none"
"""The setting that disables a limit."""


def parse_limits(text: str) -> tuple[RateLimitItem, ...]:
    """Parse a text like `50/hour` or `10/minute; 50/hour`; `none` yields no limits. Raises ValueError."""
    if text.strip().lower() == UNLIMITED:
        return ()
    found = tuple(parse_many(text))
    if any(limit.amount < 1 for limit in found):
        raise ValueError(f"a limit must allow at least 1: {text!r}")
    return found


def _checked(text: str) -> str:
    parse_limits(text)
    return text


Limit = Annotated[str, AfterValidator(_checked)]
"""A rate limit: `50/hour`, `10/minute; 50/hour`, or `none`."""


def _redis(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// (TLS) or unix://")
    return url


class RateLimitSettings(Group):
    """Rate limits per owner, and where they are counted."""

    uploads: Limit = Field(
        "50/hour",
        description="images per owner, by upload or URL; `none` = unlimited, as is, unless this is set, a gateway on a "
        "loopback address for callers without credentials",
    )
    changes: Limit = Field("600/hour", description="changes of images' tags, category and metadata per owner")
    requests: Limit = Field("none", description="API requests per owner, of any kind")
    features: Limit = Field("none", description="images per owner for feature extraction")
    redis_url: Annotated[SecretStr, AfterValidator(_redis)] | None = Field(
        None, description="redis://… or rediss://…, a counter shared by all gateways; empty = each counts separately"
    )
    redis_timeout_s: float = Field(
        1.0, gt=0, description="timeout of a Redis call in seconds; after it this gateway counts separately"
    )


class QuotaSettings(Group):
    """Quotas per owner. Deleting images frees space."""

    images: int | None = Field(None, ge=1, description="images per owner; empty = unlimited")
    bytes: int | None = Field(None, ge=1, description="bytes of originals per owner; empty = unlimited")
    recount_s: float = Field(
        60.0, gt=0, description="seconds between two counts of an owner's objects; own uploads are added in between"
    )
