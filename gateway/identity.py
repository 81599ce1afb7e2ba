"""Who asks: the owner whose images they may see, and what they may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from schemas.values import DEFAULT_OWNER, Owner


class Scope(StrEnum):
    """What a caller may do. A token or key carries any of these."""

    WRITE = "images:write"
    READ = "images:read"
    SEARCH = "search"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller whose credentials were checked."""

    owner: Owner
    scopes: frozenset[Scope]
    name: str  # for logs and limits: `anonymous`, `key:<id>`, `token:<subject>`; never a secret
    limits: Mapping[str, str] = field(default_factory=dict)  # of an API key, in place of the owner's: kind -> "50/hour"


ANONYMOUS = Identity(DEFAULT_OWNER, frozenset(Scope), "anonymous")
"""Everybody, where no credentials are asked for."""
