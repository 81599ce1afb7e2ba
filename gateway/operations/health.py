"""Readiness: checks all parts in parallel, with a timeout, and caches the result."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from fastapi import Request, Response

from gateway.access.dependencies import is_operator
from gateway.access.permissions import public
from gateway.access.routes import Routes
from gateway.http.request_context import version
from gateway.limits.rate_limits import Limits
from gateway.protocols import Readiness, TextEncoder, model_reason
from schemas.http.health import Health, PartHealth
from streams.concurrency.circuit_breaker import State
from streams.object_store.protocol import FileStore
from streams.read_model.protocol import ReadModel

log = logging.getLogger(__name__)

Part = Callable[[], Awaitable[tuple[bool, str]]]
BreakerState = Callable[[], State]

_BREAKERS = {State.CLOSED: "closed", State.HALF_OPEN: "half-open", State.OPEN: "open"}


@dataclass(slots=True)
class Parts:
    """A Readiness made of parts. A check that raises or times out fails; the cause is logged, not published."""

    parts: Mapping[str, Part]
    timeout_s: float
    cache_s: float = 0.0
    breakers: Mapping[str, BreakerState] = field(default_factory=dict)  # of parts that have one
    _known: dict[str, PartHealth] = field(default_factory=dict)
    _known_at: float = float("-inf")
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def check(self) -> dict[str, PartHealth]:
        """See Readiness."""
        async with self._lock:
            if time.monotonic() - self._known_at > self.cache_s:
                answers = await asyncio.gather(*(self._check_part(name, part) for name, part in self.parts.items()))
                self._known = dict(zip(self.parts, answers, strict=True))
                self._known_at = time.monotonic()
            return dict(self._known)

    async def _check_part(self, name: str, part: Part) -> PartHealth:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.timeout_s):
                ok, detail = await part()
        except Exception as error:  # any error means that the part is not ready
            log.warning("%s is not ready", name, extra={"error": repr(error)})
            ok, detail = False, "does not answer"
        latency_ms = round((time.monotonic() - began) * 1000, 1)
        breaker = self.breakers[name]() if name in self.breakers else None
        state = "down" if not ok else "degraded" if breaker not in (None, State.CLOSED) else "ok"
        breaker_state = _BREAKERS[breaker] if breaker is not None else None
        return PartHealth.model_validate(
            {"ok": ok, "detail": detail, "state": state, "latency_ms": latency_ms, "breaker": breaker_state}
        )


def files_part(files: FileStore) -> Part:
    """Return a check that writes and reads an object."""

    async def check() -> tuple[bool, str]:
        await files.check()
        return True, "objects can be written and read"

    return check


def read_model_part(read_model: ReadModel) -> Part:
    """Return a check that queries the read model."""

    async def check() -> tuple[bool, str]:
        await read_model.check()
        return True, "the read model answers"

    return check


def health_routes(readiness: Readiness, limits: Limits, encoder: TextEncoder | None = None) -> Routes:
    """Return the health routes. Optional parts can degrade the system but never make it unready."""
    routes = Routes(tags=["operation"])

    async def check(*, operator: bool = False) -> Health:
        found = await readiness.check()
        ready = all(part.ok for part in found.values())
        found |= {name: _optional(*answer) for name, answer in _optional_parts(limits, encoder, operator).items()}
        healthy = all(part.ok and part.state != "degraded" for part in found.values())
        status = "ok" if healthy else "degraded" if ready else "unready"
        return Health(status=status, ready=ready, version=version(), parts=found)

    @routes.get("/health/live", dependencies=[public()], summary="Is this process alive")
    async def live() -> dict[str, str]:
        """Respond while the event loop runs; checks no dependency."""
        return {"status": "ok"}

    @routes.get(
        "/health/ready",
        dependencies=[public()],
        summary="Readiness: can uploads be processed completely",
        responses={503: {"model": Health, "description": "not ready"}},
        response_model_exclude_none=True,
    )
    async def ready(response: Response) -> Health:
        """200 only when every part that the processing of an upload needs is ready."""
        health = await check()
        response.status_code = 200 if health.ready else 503
        return health

    @routes.get(
        "/api/v1/health",
        dependencies=[public()],
        summary="Get the health of every part",
        response_model_exclude_none=True,
    )
    async def health(request: Request) -> Health:
        """Return the health of every part, always with status 200: for people and dashboards.

        Callers with the scope `admin` also see why a model is unavailable.
        """
        return await check(operator=await is_operator(request))

    return routes


def _optional_parts(limits: Limits, encoder: TextEncoder | None, operator: bool) -> dict[str, tuple[bool, str]]:
    """Return the state of parts whose failure degrades the system but never makes it unready."""
    found = {"limits": limits.available()}
    if encoder is not None:
        available, detail = encoder.available()
        shown = detail if available else model_reason(detail, operator=operator)
        found["search-by-meaning"] = (available, shown)
    return found


def _optional(ok: bool, detail: str) -> PartHealth:
    return PartHealth(ok=ok, detail=detail, state="ok" if ok else "degraded")
