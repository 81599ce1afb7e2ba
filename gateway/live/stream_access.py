"""The right to an open event stream: checked again while it is open, so that it ends with its credentials."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import Request

from gateway.access.dependencies import Authenticator
from gateway.access.identity import Identity, Scope
from gateway.http.problems import Problem
from streams.errors import DependencyUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamAccess:
    """The caller of an event stream, and the request with the credentials."""

    authenticator: Authenticator
    request: Request
    identity: Identity

    @classmethod
    def of(cls, request: Request, identity: Identity) -> StreamAccess:
        """Return the access of a request whose caller was identified."""
        return cls(request.app.state.authenticator, request, identity)

    def left_s(self) -> float:
        """Return the seconds until the credentials expire; infinite without an expiry."""
        expires_at = self.identity.expires_at
        return float("inf") if expires_at is None else (expires_at - datetime.now(UTC)).total_seconds()

    async def is_valid(self) -> bool:
        """Return whether the credentials still give access to the owner's images. False also if nothing can tell."""
        try:
            now = await self.authenticator.identify(self.request)
        except (Problem, DependencyUnavailable, TimeoutError) as error:
            log.info("live stream ended: credentials not valid any more", extra={"error": repr(error)})
            return False
        return now.owner == self.identity.owner and Scope.READ in now.scopes
