"""Times requests to a query gateway, in a process of its own, on a read model that exists."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from gateway.apps.components import QueryComponents
from gateway.apps.query import query_app
from gateway.operations.health import Parts, read_model_part
from gateway.settings import GatewaySettings
from schemas.events.envelope import Event
from streams.object_store.factory import open_files
from streams.process.http_server import serving
from streams.read_model.factory import open_read_model
from streams.settings import FilesSettings, QdrantSettings
from streams.topics import Topic

REQUESTS = 300
START_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class NoEvents:
    """An event sink of a gateway that is only read from."""

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        raise AssertionError("the bench only reads: no request publishes an event")


async def requests_ms(folder: Path, paths: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Return p50 and p95 of the requests, one at a time by one connection, in ms; `folder` is the read model's."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(folder, there), daemon=True)
    process.start()
    try:
        if not await asyncio.to_thread(here.poll, START_PATIENCE_S):
            raise TimeoutError("the gateway did not start")
        base = f"http://127.0.0.1:{here.recv()}"
        async with aiohttp.ClientSession(base) as session:
            return {name: await _timed(session, path) for name, path in paths.items()}
    finally:
        here.send(None)
        await asyncio.to_thread(process.join)


async def _timed(session: aiohttp.ClientSession, path: str) -> tuple[float, float]:
    taken = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        async with session.get(path) as answer:
            body = await answer.read()
        taken.append(1000 * (time.perf_counter() - began))
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body[:300]!r}")
    cuts = statistics.quantiles(taken, n=20)
    return cuts[9], cuts[18]


def _serve(folder: Path, parent: Connection) -> None:
    asyncio.run(_serving(folder, parent))


async def _serving(folder: Path, parent: Connection) -> None:
    async with (
        open_files(FilesSettings(directory=folder / "objects")) as files,
        open_read_model(QdrantSettings(path=folder)) as read_model,
    ):
        readiness = Parts({"read-model": read_model_part(read_model)}, timeout_s=5)
        components = QueryComponents(files=files, events=NoEvents(), read_model=read_model, readiness=readiness)
        async with serving(query_app(GatewaySettings(), components), "127.0.0.1", 0) as port:
            parent.send(port)
            await asyncio.to_thread(parent.recv)
