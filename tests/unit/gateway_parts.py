"""Small real parts for the gateway's tests: a store and a read model in memory, a sink that keeps or refuses."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fastapi import FastAPI

from gateway.settings import GatewaySettings
from schemas.envelope import Event
from schemas.values import ObjectRef
from streams.errors import DependencyAway
from streams.files import ObjectInfo, ObjectMissing
from streams.topics import Topic

BASE = "http://darkroom.test"


@dataclass
class KeptFiles:
    """Objects in a dict. `away` makes every call fail as an absent store does."""

    bucket: str = "darkroom"
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    away: bool = False

    def _answer(self) -> None:
        if self.away:
            raise DependencyAway("no store at 10.0.0.7:9000")

    async def put(self, key: str, data: bytes | Path, *, content_type: str, sha256: str | None = None) -> ObjectRef:
        self._answer()
        raw = data.read_bytes() if isinstance(data, Path) else data
        self.objects[key] = (raw, content_type)
        digest = hashlib.sha256(raw).hexdigest()
        assert sha256 in (None, digest)
        return ObjectRef(bucket=self.bucket, key=key, sha256=digest, size=len(raw), content_type=content_type)

    async def get(self, key: str, *, limit: int | None = None) -> bytes:
        self._answer()
        if key not in self.objects:
            raise ObjectMissing(key)
        raw = self.objects[key][0]
        if limit is not None and len(raw) > limit:
            raise ValueError(f"{key} has {len(raw)} bytes")
        return raw

    async def stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        raw = await self.get(key)
        end = len(raw) if length is None else start + length
        for at in range(start, end, 65536):
            yield raw[at : min(at + 65536, end)]

    async def stat(self, key: str) -> ObjectInfo | None:
        self._answer()
        if key not in self.objects:
            return None
        raw, kind = self.objects[key]
        return ObjectInfo(key, len(raw), kind, hashlib.md5(raw).hexdigest(), time.time())

    async def copy(self, source: str, target: str) -> None:
        self.objects[target] = (await self.get(source), self.objects[source][1])

    async def delete(self, key: str) -> None:
        self._answer()
        self.objects.pop(key, None)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key in sorted(self.objects):
            if key.startswith(prefix) and (info := await self.stat(key)):
                yield info

    async def presign_get(self, key: str, *, expires_s: int, filename: str | None = None) -> str | None:
        return None

    async def check(self) -> None:
        self._answer()


@dataclass
class Sink:
    """Keeps what was sent; `away` makes it refuse as Kafka does when it is away."""

    sent: list[tuple[Topic, Event]] = field(default_factory=list)
    away: bool = False
    traceparents: list[str | None] = field(default_factory=list)

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None) -> None:
        if self.away:
            raise DependencyAway("Kafka did not confirm")
        self.sent.append((topic, event))
        self.traceparents.append(traceparent)


@dataclass
class Answers:
    """A readiness that says what it is told."""

    parts: dict[str, tuple[bool, str]] = field(default_factory=lambda: {"kafka": (True, "answers")})

    async def check(self) -> dict[str, tuple[bool, str]]:
        return self.parts


@dataclass
class Encoder:
    """An encoder of three words, each its own direction; knows no other."""

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
    """Return the default settings with some changed."""
    return GatewaySettings.model_validate(changes)


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Talk to an app without a socket."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client
