"""Authentication and authorization errors (RFC 6750 section 3), no more precise than an honest caller needs."""

from __future__ import annotations

import structlog
from fastapi import Request

from gateway.access.identity import Scope
from gateway.http.problems import Problem
from schemas.http.problems import ProblemCode
from streams.telemetry.metrics import AUTHENTICATIONS

log = structlog.get_logger(__name__)
_REALM = 'Bearer realm="darkroom"'


class TokenRefused(Exception):
    """Invalid token. `expired` is set only for tokens with a valid signature."""

    def __init__(self, *, expired: bool = False) -> None:
        super().__init__("expired" if expired else "invalid")
        self.expired = expired


def missing() -> Problem:
    """Return the error of a request without the credentials it needs."""
    return Problem(
        ProblemCode.UNAUTHORIZED,
        "Send a token or an API key as `Authorization: Bearer …`, or an API key as `X-API-Key`.",
        headers={"WWW-Authenticate": _REALM},
    )


def invalid(*, expired: bool = False) -> Problem:
    """Return the error of invalid credentials. Only genuine ones are reported as expired."""
    why = "have expired" if expired else "are not valid"
    return Problem(
        ProblemCode.UNAUTHORIZED,
        f"The credentials {why}.",
        headers={"WWW-Authenticate": f'{_REALM}, error="invalid_token", error_description="The credentials {why}"'},
    )


def ambiguous() -> Problem:
    """Return the error of a request with more than one set of credentials."""
    return Problem(
        ProblemCode.UNAUTHORIZED,
        "Send credentials once, in one header.",
        headers={"WWW-Authenticate": f'{_REALM}, error="invalid_request"'},
    )


def insufficient(scope: Scope) -> Problem:
    """Return the error of a caller without the required scope."""
    return Problem(
        ProblemCode.FORBIDDEN,
        f"The scope `{scope}` is required.",
        headers={"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{scope}"'},
    )


def foreign() -> Problem:
    """Return the error of a request that may come from a page of another site, in a browser of this machine."""
    return Problem(
        ProblemCode.FORBIDDEN,
        "Without credentials the gateway accepts only requests from programs of this machine to a loopback address.",
    )


def recorded(request: Request, problem: Problem, why: str, by: str | None = None) -> Problem:
    """Count and log an error, without the credentials; return it."""
    AUTHENTICATIONS.labels(why).inc()
    log.warning(
        "authentication refused",
        why=why,
        method=request.method,
        route=request.scope["route"].path,
        client=request.client.host if request.client else None,
        by=by,
    )
    return problem
