"""The gateway processes, each opened from its settings: ingest, query, and the core that has both on one address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from agents import pipeline
from darkroom.meaning import ImageTower, open_encoder, open_features, open_tower
from darkroom.readiness import readiness
from darkroom.reconciling import RECONCILER, ReconcilingEnvironment, Upkeep
from darkroom.workers import explain, guarded, read_settings
from gateway.app import embedded_app
from gateway.auth import open_door
from gateway.auth_settings import AuthSettings
from gateway.batching import Batching, FeatureSettings, open_batching
from gateway.ingest import ingest_app
from gateway.limit_settings import QuotaSettings, RateLimitSettings
from gateway.limits import open_limits
from gateway.numbers import StatisticsSettings, open_numbers
from gateway.parts import IngestParts, QueryParts
from gateway.query import query_app
from gateway.quotas import Quotas
from gateway.settings import GatewaySettings
from streams.admin import KafkaAdmin
from streams.backlog import Backlog
from streams.breaker import Breakers
from streams.dead_letters import DeadLetterOffice
from streams.errors import DependencyAway, NotReady
from streams.feed_log import LiveSettings, LogFeed, open_feed
from streams.files import FileStore, open_files
from streams.http_protocol import ServerSettings
from streams.letter_pages import LetterPages
from streams.process import consume, leave_undeliverable, until_signal
from streams.producer import EventProducer, open_producer
from streams.rates import RecentLog
from streams.safety import check_safe
from streams.serving import serving
from streams.settings import Settings
from streams.starting import check_files
from streams.topics import PIPELINE
from streams.vectors import ReadModel, open_read_model
from streams.watchdog import Watchdog, WatchdogSettings

log = structlog.get_logger(__name__)


class GatewayEnvironment(BaseSettings):
    """The gateway's settings, from DARKROOM_GATEWAY__*, DARKROOM_LIMITS__* and others named as its fields."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )

    gateway: GatewaySettings = GatewaySettings()
    auth: AuthSettings = AuthSettings()
    features: FeatureSettings = FeatureSettings()
    statistics: StatisticsSettings = StatisticsSettings()
    limits: RateLimitSettings = RateLimitSettings()
    live: LiveSettings = LiveSettings()
    quotas: QuotaSettings = QuotaSettings()
    server: ServerSettings = ServerSettings()


def run_gateway(part: str) -> int:
    """Be `ingest`, `query`, or the embedded `core` (both, with the indexer) until SIGTERM; return the exit code."""
    settings = read_settings(part)
    try:
        environment, upkeep = GatewayEnvironment(), ReconcilingEnvironment()
    except (ValidationError, SettingsError) as error:
        return explain(error)
    if part == "ingest":
        return asyncio.run(guarded(_ingest(settings, environment)))
    answering = _query if part == "query" else _core
    return asyncio.run(guarded(answering(settings, environment, upkeep)))


async def _serve_until_signal(app: FastAPI, environment: GatewayEnvironment, live: LogFeed | None = None) -> None:
    own = environment.gateway
    async with serving(app, own.host, own.port, environment.server) as port:
        log.info("listening", url=f"http://{own.host}:{port}")
        await until_signal()
        if live is not None:
            live.hang_up()  # streams would keep the server from closing


def _confirm_s(settings: Settings) -> float:
    return min(settings.kafka.request_timeout_s, 10.0)


def _gateway_events(settings: Settings) -> AbstractAsyncContextManager[EventProducer]:
    """A gateway starts, and answers 503, while Kafka is away; and it tells its clients so soon."""
    kafka = settings.kafka.model_copy(update={"request_timeout_s": _confirm_s(settings)})
    return open_producer(kafka, source="darkroom/gateway", now=False)


def check_gateway(settings: Settings, own: GatewaySettings) -> None:
    """Refuse settings under which a gateway could answer what is not so. Raises NotReady naming all."""
    problems = []
    if own.delivery_timeout_s <= _confirm_s(settings):
        # A 503 would be answered while Kafka may still be given the event: refused, and done all the same.
        problems.append(
            f"DARKROOM_GATEWAY__DELIVERY_TIMEOUT_S ({own.delivery_timeout_s:g}) must be more than the "
            f"{_confirm_s(settings):g} s Kafka has to confirm"
        )
    if own.upload_idle_s > own.upload_total_s:
        # The limit of a silent client could never be reached.
        problems.append(
            f"DARKROOM_GATEWAY__UPLOAD_IDLE_S ({own.upload_idle_s:g}) is more than DARKROOM_GATEWAY__UPLOAD_TOTAL_S "
            f"({own.upload_total_s:g})"
        )
    for name, seconds in (("STORAGE", own.storage_timeout_s), ("QUERY", own.query_timeout_s)):
        if seconds <= settings.breaker.slow_s:
            # Every request would wait for a dependency that hangs: giving up so soon never counts as a failure.
            problems.append(
                f"DARKROOM_GATEWAY__{name}_TIMEOUT_S ({seconds:g}) must be more than DARKROOM_BREAKER__SLOW_S "
                f"({settings.breaker.slow_s:g})"
            )
    if problems:
        raise NotReady("unsafe settings: " + "; ".join(problems))


async def _opened_files(
    stack: AsyncExitStack, settings: Settings, own: GatewaySettings, breakers: Breakers
) -> FileStore:
    """Go through the start-up checks of a gateway; return its object store, which let us write and read."""
    check_safe(settings)
    check_gateway(settings, own)
    try:
        await KafkaAdmin(settings.kafka).check_topics(topic for topic in PIPELINE if "gateway" in topic.writers)
    except DependencyAway as error:
        log.warning("Kafka is away; uploads are answered 503 until it is back", error=str(error))
    files = await stack.enter_async_context(open_files(settings.files, breakers))
    await check_files(files, settings.files)
    return files


async def _ingest(settings: Settings, environment: GatewayEnvironment) -> None:
    own = environment.gateway
    async with AsyncExitStack() as stack:
        breakers = Breakers(settings.breaker)
        files = await _opened_files(stack, settings, own, breakers)
        door = await open_door(own, environment.auth, files)
        events = await stack.enter_async_context(_gateway_events(settings))
        ready = readiness(own, KafkaAdmin(settings.kafka), files=files, breakers=breakers)
        await stack.enter_async_context(Watchdog(WatchdogSettings("ingest", settings.worker.loop_lag_s)))
        limits = await stack.enter_async_context(open_limits(environment.limits))
        parts = IngestParts(
            files=files,
            events=events,
            readiness=ready,
            authenticator=door,
            limits=limits,
            quotas=Quotas(environment.quotas, files),
        )
        await _serve_until_signal(ingest_app(own, parts), environment)


async def _query(settings: Settings, environment: GatewayEnvironment, upkeep: ReconcilingEnvironment) -> None:
    await _answer("query", query_app, settings, environment, upkeep, with_indexer=False)


async def _core(settings: Settings, environment: GatewayEnvironment, upkeep: ReconcilingEnvironment) -> None:
    """Ingest and query on one address; with the read model in process, indexer and reconciler too: it has one owner."""
    await _answer("core", embedded_app, settings, environment, upkeep, with_indexer=settings.qdrant.url is None)


async def _answer(
    process: str,
    make: Callable[[GatewaySettings, QueryParts], FastAPI],
    settings: Settings,
    environment: GatewayEnvironment,
    upkeep: ReconcilingEnvironment,
    *,
    with_indexer: bool,
) -> None:
    """Open what answers need, and serve the app that `make` builds of it."""
    own = environment.gateway
    async with AsyncExitStack() as stack:
        breakers = Breakers(settings.breaker)
        files = await _opened_files(stack, settings, own, breakers)
        door = await open_door(own, environment.auth, files)
        events = await stack.enter_async_context(_gateway_events(settings))
        vectors = await stack.enter_async_context(open_read_model(settings.qdrant, breakers))
        tower = await stack.enter_async_context(open_tower(settings.models, environment.features.weights))
        encoder = await stack.enter_async_context(open_encoder(settings.models, tower))
        keeping = Upkeep.of(upkeep, settings.kafka, files=files, vectors=vectors, deliverer=events)
        said = {RECONCILER: keeping.part} if with_indexer else {}
        ready = readiness(own, KafkaAdmin(settings.kafka), files=files, breakers=breakers, vectors=vectors, said=said)
        await stack.enter_async_context(Watchdog(WatchdogSettings(process, settings.worker.loop_lag_s)))
        parts = QueryParts(
            files=files,
            events=events,
            readiness=ready,
            authenticator=door,
            limits=await stack.enter_async_context(open_limits(environment.limits)),
            quotas=Quotas(environment.quotas, files),
            live=await stack.enter_async_context(open_feed(settings.kafka, environment.live)),
            vectors=vectors,
            encoder=encoder,
            features=await _features(stack, tower, environment.features),
            reconciling=keeping,
            letters=LetterPages(settings.kafka, DeadLetterOffice(settings.kafka, files, events)),
            numbers=await stack.enter_async_context(
                open_numbers(
                    environment.statistics,
                    files,
                    vectors,
                    RecentLog(settings.kafka),
                    Backlog(KafkaAdmin(settings.kafka)),
                )
            ),
        )
        if with_indexer:
            await stack.enter_async_context(_indexer_beside(settings, files, breakers, vectors))
            await stack.enter_async_context(keeping.going_on())
        await _serve_until_signal(make(own, parts), environment, parts.live)


async def _features(stack: AsyncExitStack, tower: ImageTower, own: FeatureSettings) -> Batching[Any]:
    """Open CLIP for services that only want vectors. Nothing is loaded, and no child started, before the first asks."""
    encoder = await stack.enter_async_context(open_features(tower, decoders=own.decoders, max_bytes=own.max_bytes))
    return await stack.enter_async_context(open_batching(encoder, own))


@asynccontextmanager
async def _indexer_beside(
    settings: Settings, files: FileStore, breakers: Breakers, vectors: ReadModel
) -> AsyncIterator[None]:
    """Run the indexer in this process. If it cannot go on, the whole process goes, and is started again."""
    stage = pipeline.stage("indexer")
    own = pipeline.settings_of(stage)
    check_safe(settings, stage.name, own)
    leaving = asyncio.Event()
    until = asyncio.create_task(_until(leaving))
    consuming = asyncio.create_task(
        consume(
            stage,
            own,
            settings,
            health=breakers.health,
            files=files,
            breakers=breakers,
            vectors=vectors,
            until=until,
        )
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
