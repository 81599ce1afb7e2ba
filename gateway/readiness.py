"""Readiness: every part proves that it works, all at once, within a bound, not more often than it must."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from fastapi import APIRouter, Response

from gateway.edge import version
from gateway.ports import Readiness, TextEncoder
from schemas.http_api import Health, PartHealth
from streams.files import FileStore
from streams.vectors import ReadModel

log = logging.getLogger(__name__)

Part = Callable[[], Awaitable[tuple[bool, str]]]


@dataclass(slots=True)
class Parts:
    """A Readiness made of parts. One that raises or takes too long does not work; why is logged, not told."""

    parts: Mapping[str, Part]
    timeout_s: float
    cache_s: float = 0.0
    _known: dict[str, tuple[bool, str]] = field(default_factory=dict)
    _known_at: float = float("-inf")
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def check(self) -> dict[str, tuple[bool, str]]:
        """See Readiness."""
        async with self._lock:
            if time.monotonic() - self._known_at > self.cache_s:
                answers = await asyncio.gather(*(self._ask(name, part) for name, part in self.parts.items()))
                self._known = dict(zip(self.parts, answers, strict=True))
                self._known_at = time.monotonic()
            return dict(self._known)

    async def _ask(self, name: str, part: Part) -> tuple[bool, str]:
        try:
            async with asyncio.timeout(self.timeout_s):
                return await part()
        except Exception as error:  # whatever it is, this part does not work
            log.warning("%s is not ready", name, extra={"error": repr(error)})
            return False, "does not answer"


def files_part(files: FileStore) -> Part:
    """Return the part that proves objects can be written and read."""

    async def check() -> tuple[bool, str]:
        await files.check()
        return True, "objects can be written and read"

    return check


def vectors_part(vectors: ReadModel) -> Part:
    """Return the part that proves the read model answers."""

    async def check() -> tuple[bool, str]:
        await vectors.check()
        return True, "the read model answers"

    return check


def health_routes(readiness: Readiness, encoder: TextEncoder | None = None) -> APIRouter:
    """Return the routes that say how the system does. A missing encoder degrades; it never makes unready."""
    router = APIRouter(tags=["operation"])

    async def look() -> Health:
        parts = {name: PartHealth(ok=ok, detail=detail) for name, (ok, detail) in (await readiness.check()).items()}
        ready = all(part.ok for part in parts.values())
        if encoder is not None:
            ok, detail = encoder.available()
            parts["search-by-meaning"] = PartHealth(ok=ok, detail=detail)
        well = all(part.ok for part in parts.values())
        status = "ok" if well else "degraded" if ready else "unready"
        return Health(status=status, ready=ready, version=version(), parts=parts)

    @router.get("/health/live", summary="Is this process alive")
    async def live() -> dict[str, str]:
        """Answer as long as the event loop turns; asks nobody else."""
        return {"status": "ok"}

    @router.get("/health/ready", summary="Would an upload be carried to its end", responses={503: {"model": Health}})
    async def ready(response: Response) -> Health:
        """200 only when every part works that an upload needs from here to its end."""
        health = await look()
        response.status_code = 200 if health.ready else 503
        return health

    @router.get("/api/v1/health", summary="How every part does")
    async def health() -> Health:
        """Always 200: for people and dashboards."""
        return await look()

    return router
