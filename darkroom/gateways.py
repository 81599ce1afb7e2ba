"""The gateway processes, each opened from its settings: ingest, query, and the core that has both on one address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import structlog
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from agents import pipeline
from darkroom.meaning import open_encoder
from darkroom.readiness import readiness
from darkroom.workers import explain, guarded, read_settings
from gateway.app import embedded_app
from gateway.ingest import ingest_app
from gateway.query import query_app
from gateway.settings import GatewaySettings
from streams.admin import KafkaAdmin
from streams.files import FileStore, open_files
from streams.health import HealthBoard
from streams.process import consume, leave_undeliverable, until_signal
from streams.producer import EventProducer, open_producer
from streams.serving import serving
from streams.settings import Settings
from streams.vectors import ReadModel, open_read_model
from streams.watchdog import Watchdog, WatchdogSettings

log = structlog.get_logger(__name__)


class GatewayEnvironment(BaseSettings):
    """The gateway's settings, from DARKROOM_GATEWAY__*."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )

    gateway: GatewaySettings = GatewaySettings()


def run_gateway(part: str) -> int:
    """Be `ingest`, `query`, or the embedded `core` (both, with the indexer) until SIGTERM; return the exit code."""
    settings = read_settings(part)
    try:
        own = GatewayEnvironment().gateway
    except ValidationError as error:
        return explain(error)
    bodies = {"ingest": _ingest, "query": _query, "core": _core}
    return asyncio.run(guarded(bodies[part](settings, own)))


async def _serve_until_signal(app: FastAPI, own: GatewaySettings) -> None:
    async with serving(app, own.host, own.port) as port:
        log.info("listening", url=f"http://{own.host}:{port}")
        await until_signal()


def _gateway_events(settings: Settings) -> AbstractAsyncContextManager[EventProducer]:
    """A gateway starts, and answers 503, while Kafka is away; and it tells its clients so soon."""
    kafka = settings.kafka.model_copy(update={"request_timeout_s": min(settings.kafka.request_timeout_s, 10.0)})
    return open_producer(kafka, source="darkroom/gateway", now=False)


async def _ingest(settings: Settings, own: GatewaySettings) -> None:
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_files(settings.files))
        events = await stack.enter_async_context(_gateway_events(settings))
        ready = readiness(own, KafkaAdmin(settings.kafka), files=files)
        await stack.enter_async_context(Watchdog(WatchdogSettings("ingest", settings.worker.loop_lag_s)))
        await _serve_until_signal(ingest_app(own, files=files, events=events, readiness=ready), own)


async def _query(settings: Settings, own: GatewaySettings) -> None:
    await _answer("query", query_app, settings, own, with_indexer=False)


async def _core(settings: Settings, own: GatewaySettings) -> None:
    """Ingest and query on one address; with the read model in process, the indexer too: it has one owner."""
    await _answer("core", embedded_app, settings, own, with_indexer=settings.qdrant.url is None)


async def _answer(
    process: str, make: Callable[..., FastAPI], settings: Settings, own: GatewaySettings, *, with_indexer: bool
) -> None:
    """Open what answers need, and serve the app that `make` builds of it."""
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_files(settings.files))
        events = await stack.enter_async_context(_gateway_events(settings))
        vectors = await stack.enter_async_context(open_read_model(settings.qdrant))
        encoder = await stack.enter_async_context(open_encoder(settings.models))
        ready = readiness(own, KafkaAdmin(settings.kafka), files=files, vectors=vectors)
        await stack.enter_async_context(Watchdog(WatchdogSettings(process, settings.worker.loop_lag_s)))
        app = make(own, files=files, events=events, vectors=vectors, encoder=encoder, readiness=ready)
        if with_indexer:
            await stack.enter_async_context(_indexer_beside(settings, files, vectors))
        await _serve_until_signal(app, own)


@asynccontextmanager
async def _indexer_beside(settings: Settings, files: FileStore, vectors: ReadModel) -> AsyncIterator[None]:
    """Run the indexer in this process. If it cannot go on, the whole process goes, and is started again."""
    stage = pipeline.stage("indexer")
    own = pipeline.settings_of(stage)
    leaving = asyncio.Event()
    until = asyncio.create_task(_until(leaving))
    consuming = asyncio.create_task(
        consume(stage, own, settings, health=HealthBoard(), files=files, vectors=vectors, until=until)
    )
    consuming.add_done_callback(lambda task: None if leaving.is_set() else leave_undeliverable(_why(task)))
    try:
        yield
    finally:
        leaving.set()
        await consuming


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _why(task: asyncio.Task[None]) -> BaseException:
    error = None if task.cancelled() else task.exception()
    return error or RuntimeError("the indexer ended")
