"""The processes Darkroom consists of, each opened here from its settings: gateways, agents, the router, the core."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from agents import pipeline
from darkroom.meaning import open_encoder
from darkroom.readiness import readiness
from gateway.app import embedded_app
from gateway.ingest import ingest_app
from gateway.query import query_app
from gateway.settings import GatewaySettings
from streams.admin import KafkaAdmin
from streams.allocation import give_memory_back
from streams.errors import DependencyAway, NotReady
from streams.files import FileStore, open_files
from streams.health import Condition, HealthBoard
from streams.logs import configure_logs
from streams.process import (
    EXIT_NOT_READY,
    consume,
    leave_undeliverable,
    run_stage,
    until_signal,
)
from streams.producer import EventProducer, open_producer
from streams.router import Router
from streams.serving import serving, serving_health
from streams.settings import Settings
from streams.vectors import ReadModel, open_read_model
from streams.watchdog import Watchdog, WatchdogSettings
from streams.worker import EXIT_UNDELIVERABLE

log = structlog.get_logger(__name__)


class GatewayEnvironment(BaseSettings):
    """The gateway's settings, from DARKROOM_GATEWAY__*."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )

    gateway: GatewaySettings = GatewaySettings()


def read_settings(process: str) -> Settings:
    """Read the shared settings, set up logging and memory; exit 2 naming what is wrong."""
    give_memory_back()
    try:
        settings = Settings()
    except ValidationError as error:
        raise SystemExit(explain(error)) from error
    configure_logs(settings.telemetry, process=process)
    log.info("settings", **settings.model_dump(mode="json"))
    return settings


def explain(error: ValidationError) -> int:
    """Write one line per wrong setting to stderr, naming its variable; return the exit code."""
    for item in error.errors(include_url=False):
        variable = "DARKROOM_" + "__".join(str(part).upper() for part in item["loc"])
        sys.stderr.write(f"{variable}: {item['msg']} (it is {item.get('input')!r})\n")
    return EXIT_NOT_READY


def run_agent(name: str) -> int:
    """Be one agent until SIGTERM; return the exit code."""
    settings = read_settings(name)
    stage = pipeline.stage(name)
    try:
        own = pipeline.settings_of(stage)
    except ValidationError as error:
        return explain(error)
    log.info("stage settings", stage=name, **own.model_dump(mode="json"))
    return asyncio.run(run_stage(stage, own, settings))


def run_router() -> int:
    """Be the router until SIGTERM; return the exit code."""
    return asyncio.run(_guarded(_router(read_settings("router"))))


def run_gateway(part: str) -> int:
    """Be `ingest`, `query`, or the embedded `core` (both, with the indexer) until SIGTERM; return the exit code."""
    settings = read_settings(part)
    try:
        own = GatewayEnvironment().gateway
    except ValidationError as error:
        return explain(error)
    bodies = {"ingest": _ingest, "query": _query, "core": _core}
    return asyncio.run(_guarded(bodies[part](settings, own)))


async def _guarded(body: Any) -> int:
    try:
        await body
    except NotReady as error:
        log.critical("cannot start", reason=str(error))
        return EXIT_NOT_READY
    except DependencyAway as error:
        log.critical("a dependency is away", reason=str(error))
        return EXIT_UNDELIVERABLE
    return 0


async def _router(settings: Settings) -> None:
    health = HealthBoard()
    health.say("kafka", Condition.UNREADY, "joining")
    signalled = asyncio.create_task(until_signal())
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving_health(health, settings.worker, lambda: None))
        producer = await stack.enter_async_context(open_producer(settings.kafka, source="darkroom/router"))
        await stack.enter_async_context(Watchdog(WatchdogSettings("router", settings.worker.loop_lag_s)))
        router = Router(settings.kafka, producer)
        running = asyncio.create_task(router.run())
        ready = asyncio.create_task(router.ready.wait())
        await asyncio.wait({signalled, running, ready}, return_when=asyncio.FIRST_COMPLETED)
        health.say("kafka", Condition.OK, "routing")
        await asyncio.wait({signalled, running}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if running.done():
            await running
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


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
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_files(settings.files))
        events = await stack.enter_async_context(_gateway_events(settings))
        vectors = await stack.enter_async_context(open_read_model(settings.qdrant))
        encoder = await stack.enter_async_context(open_encoder(settings.models))
        ready = readiness(own, KafkaAdmin(settings.kafka), files=files, vectors=vectors)
        await stack.enter_async_context(Watchdog(WatchdogSettings("query", settings.worker.loop_lag_s)))
        app = query_app(own, files=files, events=events, vectors=vectors, encoder=encoder, readiness=ready)
        await _serve_until_signal(app, own)


async def _core(settings: Settings, own: GatewaySettings) -> None:
    """Ingest and query on one address; with the read model in process, the indexer too: it has one owner."""
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_files(settings.files))
        events = await stack.enter_async_context(_gateway_events(settings))
        vectors = await stack.enter_async_context(open_read_model(settings.qdrant))
        encoder = await stack.enter_async_context(open_encoder(settings.models))
        ready = readiness(own, KafkaAdmin(settings.kafka), files=files, vectors=vectors)
        await stack.enter_async_context(Watchdog(WatchdogSettings("core", settings.worker.loop_lag_s)))
        app = embedded_app(own, files=files, events=events, vectors=vectors, encoder=encoder, readiness=ready)
        if settings.qdrant.url is None:
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
