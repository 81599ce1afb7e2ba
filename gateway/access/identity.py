"""Who asks: the owner whose images they may see, and what they may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.http.keys import Scope
from schemas.values import DEFAULT_OWNER, Owner

__all__ = ("ANONYMOUS", "NOBODY", "Identity", "Scope")


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller whose credentials were checked."""

    owner: Owner
    scopes: frozenset[Scope]
    name: str  # for logs and limits: `anonymous`, `key:<id>`, `token:<subject>`; never a secret
    limits: Mapping[str, str] = field(default_factory=dict)  # of an API key, in place of the owner's: kind -> "50/hour"


ANONYMOUS = Identity(DEFAULT_OWNER, frozenset(Scope), "anonymous")
"""Everybody, where no credentials are asked for."""

NOBODY = Identity(DEFAULT_OWNER, frozenset(), ANONYMOUS.name)
"""Whoever asks for what is public: they were not looked at, and may nothing else."""
