"""Small real components for the gateway's tests, and shared assertions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI

from gateway.settings import GatewaySettings
from schemas.events.envelope import Event
from schemas.http.health import PartHealth
from schemas.http.problems import ProblemBody
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore
from streams.topics import Topic

BASE = "http://darkroom.test"
UPLOAD = "/api/v1/images/upload"
JPEG = b"\xff\xd8\xff\xe0" + b"\x00" * 200


class FaultyFiles:
    """A directory store; while `unavailable` is set, every call raises DependencyUnavailable."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self.unavailable = False

    def __getattr__(self, name: str) -> Any:
        if self.unavailable:
            raise DependencyUnavailable("no store at 10.0.0.7:9000")
        return getattr(self._files, name)

    async def objects(self) -> dict[str, tuple[bytes, str]]:
        """Return the bytes and content type of every object, by key."""
        found = {}
        for prefix in ("originals/", "claims/", "jobs/", "images/", "results/"):
            async for info in self._files.list(prefix):
                known = await self._files.stat(info.key)  # a listing has no content types
                found[info.key] = (await self._files.get(info.key), known.content_type if known else "")
        return found

    async def receipts(self) -> list[str]:
        """Return the keys of all receipts."""
        return [key for key in await self.objects() if key.startswith("jobs/")]


@dataclass
class Sink:
    """An event sink that records events; while `unavailable` is set, `send` raises DependencyUnavailable."""

    sent: list[tuple[Topic, Event]] = field(default_factory=list)
    unavailable: bool = False
    traceparents: list[str | None] = field(default_factory=list)
    bulk: list[Event] = field(default_factory=list)  # the events sent with bulk=True

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        if self.unavailable:
            raise DependencyUnavailable("Kafka did not confirm")
        self.sent.append((topic, event))
        self.traceparents.append(traceparent)
        if bulk:
            self.bulk.append(event)


@dataclass
class StubReadiness:
    """A readiness check with fixed results."""

    parts: dict[str, tuple[bool, str]] = field(default_factory=lambda: {"kafka": (True, "answers")})

    async def check(self) -> dict[str, PartHealth]:
        return {name: PartHealth(ok=ok, detail=detail) for name, (ok, detail) in self.parts.items()}


@dataclass
class Encoder:
    """A text encoder for three words, each along its own axis; any other word is a ValueError."""

    words: Sequence[str] = ("cat", "bus", "person")
    reason: str = ""

    def available(self) -> tuple[bool, str]:
        return not self.reason, self.reason

    async def encode_text(self, text: str) -> list[float]:
        return unit_vector(self.words.index(text))

    async def encode_image(self, data: bytes) -> list[float]:
        if not data.startswith(b"\xff\xd8"):
            raise ValueError("not a JPEG")
        return unit_vector(data[-1] % 512)


def unit_vector(axis: int) -> list[float]:
    """Return a 512-d vector along one axis."""
    return [1.0 if at == axis else 0.0 for at in range(512)]


def settings(**changes: object) -> GatewaySettings:
    """Return the default settings with changes. most_late_s is high, so that a slow machine sheds no test request."""
    return GatewaySettings.model_validate({"most_late_s": 600.0, **changes})


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client that calls an app in process."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


def refused(answer: httpx.Response, status: int, code: str) -> ProblemBody:
    """Assert that a response is a problem of that status and code; return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = ProblemBody.model_validate_json(answer.content)
    assert (problem.code, problem.status) == (code, status)
    assert problem.type == f"urn:darkroom:problem:{code}"
    assert problem.title and problem.detail and problem.instance.startswith("/")
    return problem
