"""Refusals of callers (RFC 6750 section 3): what is wrong is said no more precisely than it helps an honest one."""

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
    """The token opens nothing. `expired` is told only of one that was truly signed."""

    def __init__(self, *, expired: bool = False) -> None:
        super().__init__("expired" if expired else "invalid")
        self.expired = expired


def missing() -> Problem:
    """Return the refusal of who sent no credentials where some are needed."""
    return Problem(
        ProblemCode.UNAUTHORIZED,
        "Send a token as `Authorization: Bearer …`, or an API key so or as `X-API-Key`.",
        headers={"WWW-Authenticate": _REALM},
    )


def invalid(*, expired: bool = False) -> Problem:
    """Return the refusal of credentials that open nothing. That they have expired is told to who truly had them."""
    why = "have expired" if expired else "are not valid"
    return Problem(
        ProblemCode.UNAUTHORIZED,
        f"The credentials {why}.",
        headers={"WWW-Authenticate": f'{_REALM}, error="invalid_token", error_description="The credentials {why}"'},
    )


def ambiguous() -> Problem:
    """Return the refusal of who sent credentials in more than one way."""
    return Problem(
        ProblemCode.UNAUTHORIZED,
        "Send credentials once, and in one way.",
        headers={"WWW-Authenticate": f'{_REALM}, error="invalid_request"'},
    )


def insufficient(scope: Scope) -> Problem:
    """Return the refusal of who may do other things."""
    return Problem(
        ProblemCode.FORBIDDEN,
        f"This needs the scope `{scope}`.",
        headers={"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{scope}"'},
    )


def foreign() -> Problem:
    """Return the refusal of what may be a page of another site, in a browser of this machine."""
    return Problem(
        ProblemCode.FORBIDDEN,
        "Without credentials the gateway answers only programs of this machine that call it by its address.",
    )


def noted(request: Request, problem: Problem, why: str, by: str | None = None) -> Problem:
    """Count and log a refusal, without what was sent; return it."""
    AUTHENTICATIONS.labels(why).inc()
    log.warning(
        "a caller is refused",
        why=why,
        method=request.method,
        route=request.scope["route"].path,
        client=request.client.host if request.client else None,
        by=by,
    )
    return problem
