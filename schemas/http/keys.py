"""HTTP bodies of API keys, and the scopes of keys and tokens."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from schemas.values import OWNER_PATTERN, Value


class Scope(StrEnum):
    """A permission of a caller. A token or key has any number of them."""

    WRITE = "images:write"
    READ = "images:read"
    SEARCH = "search"
    ADMIN = "admin"


class KeyState(StrEnum):
    """Whether a key is valid."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


LimitKind = Literal["uploads", "requests", "features", "changes"]
_ONE_RATE = r"[1-9][0-9]{0,8}/(second|minute|hour|day)"
Rate = Annotated[str, Field(pattern=f"^(none|{_ONE_RATE}(; ?{_ONE_RATE}){{0,3}})$", examples=["50/hour"])]
KeyName = Annotated[str, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NewKey(BaseModel):
    """Request for an API key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    owner: str = Field(
        pattern=OWNER_PATTERN, description="owner whose images the key gives access to", examples=["shop"]
    )
    scopes: frozenset[Scope] = Field(
        frozenset({Scope.WRITE, Scope.READ, Scope.SEARCH}),
        min_length=1,
        description="permissions of the key",
        json_schema_extra={"uniqueItems": False},  # duplicates are accepted
    )
    name: KeyName = Field("", description="display name", examples=["the shop's importer"])
    expires_at: AwareDatetime | None = Field(None, description="RFC 3339; empty: does not expire")
    limits: dict[LimitKind, Rate] = Field(
        default_factory=dict,
        description="limits of the key, instead of its owner's: kind -> `50/hour`, `10/minute; 50/hour`, or `none`",
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

    key: str = Field(description="send as `Authorization: Bearer …` or `X-API-Key`; never shown again")


class KeyList(Value):
    """All API keys, oldest first."""

    keys: tuple[KeyView, ...]
