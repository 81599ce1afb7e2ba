"""What is said over HTTP of API keys, and the scopes that keys and tokens carry."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.values import OWNER_PATTERN, Value


class Scope(StrEnum):
    """What a caller may do. A token or key carries any of these."""

    WRITE = "images:write"
    READ = "images:read"
    SEARCH = "search"
    ADMIN = "admin"


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


LimitKind = Literal["uploads", "requests", "features"]
_ONE_RATE = r"[1-9][0-9]{0,8}/(second|minute|hour|day)"
Rate = Annotated[str, Field(pattern=f"^(none|{_ONE_RATE}(; ?{_ONE_RATE}){{0,3}})$", examples=["50/hour"])]
KeyName = Annotated[str, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NewKey(BaseModel):
    """Ask for an API key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    owner: str = Field(pattern=OWNER_PATTERN, description="whose images it opens", examples=["shop"])
    scopes: frozenset[Scope] = Field(
        frozenset({Scope.WRITE, Scope.READ, Scope.SEARCH}),
        min_length=1,
        description="what it may be used for",
        json_schema_extra={"uniqueItems": False},  # twice is once
    )
    name: KeyName = Field("", description="for people", examples=["the shop's importer"])
    expires_at: AwareDatetime | None = Field(None, description="RFC 3339; empty: never")
    limits: dict[LimitKind, Rate] = Field(
        default_factory=dict,
        description="its own limits, in place of its owner's: kind -> `50/hour`, `10/minute; 50/hour`, or `none`",
        examples=[{"uploads": "1000/hour"}],
    )


class KeyView(Value):
    """An API key without its secret."""

    id: str = Field(examples=["3f9c2a7be1d05846"])
    owner: str
    scopes: tuple[Scope, ...]
    name: str
    state: KeyState
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    limits: dict[str, str] = Field(default_factory=dict)


class KeyCreated(KeyView):
    """A new API key, with its secret."""

    key: str = Field(description="to be sent as `Authorization: Bearer …` or `X-API-Key`; never shown again")


class KeyList(Value):
    """Every API key, oldest first."""

    keys: tuple[KeyView, ...]
