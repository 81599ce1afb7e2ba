"""The identity of a caller: the owner whose images they may see, and their scopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from schemas.http.keys import Scope
from schemas.values import DEFAULT_OWNER, Owner

__all__ = ("ANONYMOUS", "UNIDENTIFIED", "Identity", "Scope")


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller whose credentials were checked."""

    owner: Owner
    scopes: frozenset[Scope]
    name: str  # for logs and limits: `anonymous`, `key:<id>`, `token:<subject>`; never a secret
    limits: Mapping[str, str] = field(default_factory=dict)  # of an API key, instead of the owner's: kind -> "50/hour"
    expires_at: datetime | None = None  # when the credentials expire: a stream opened with them ends then

    @property
    def is_operator(self) -> bool:
        """Whether the caller may see details of the system: settings, paths, URLs."""
        return Scope.ADMIN in self.scopes


ANONYMOUS = Identity(DEFAULT_OWNER, frozenset(Scope), "anonymous")
"""The caller of a gateway that requires no credentials."""

UNIDENTIFIED = Identity(DEFAULT_OWNER, frozenset(), ANONYMOUS.name)
"""The caller of a public route: credentials are not checked, so there are no scopes."""
