"""The gateway processes with a read model: query, and the embedded core (ingest, query and indexer on one address)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import SettingsError

from agents import pipeline
from darkroom.processes.clip import ImageTower, open_encoder, open_features, open_tower
from darkroom.processes.gateway_runtime import (
    GatewayEnvironment,
    gateway_events,
    open_checked_files,
    serve_until_signal,
)
from darkroom.processes.launch import explain, guarded, read_settings
from darkroom.processes.readiness import readiness
from darkroom.processes.reconciler import RECONCILER, Maintenance, ReconcilingEnvironment
from gateway.access.authenticator import open_authenticator
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.apps.query import query_app
from gateway.limits.quotas import Quotas
from gateway.limits.rate_limits import open_limits
from gateway.operations.statistics_cache import open_statistics_cache
from gateway.search.feature_batching import Batching, FeatureSettings, open_batching
from gateway.settings import GatewaySettings
from streams.concurrency.circuit_breaker import Breakers
from streams.kafka.admin import KafkaAdmin
from streams.live.log_follower import open_feed
from streams.object_store.protocol import FileStore
from streams.operations.consumer_lag import Backlog
from streams.operations.recent_rates import RecentLog
from streams.process.exit_codes import exit_undeliverable
from streams.process.settings_checks import check_one_clip, check_safe
from streams.process.watchdog import Watchdog, WatchdogSettings
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.retries.dead_letter_listing import DeadLetterListing
from streams.retries.dead_letters import DeadLetterStore
from streams.settings import SandboxSettings, Settings

log = structlog.get_logger(__name__)


def run_gateway(part: str) -> int:
    """Run `query`, or the embedded `core` (with ingest and indexer), until SIGTERM; return the exit code."""
    settings = read_settings(part)
    try:
        environment, reconciling = GatewayEnvironment(), ReconcilingEnvironment()
    except (ValidationError, SettingsError) as error:
        return explain(error)
    answering = _query if part == "query" else _core
    return asyncio.run(guarded(answering(settings, environment, reconciling)))


async def _query(settings: Settings, environment: GatewayEnvironment, reconciling: ReconcilingEnvironment) -> None:
    await _answer("query", query_app, settings, environment, reconciling, with_indexer=False)


async def _core(settings: Settings, environment: GatewayEnvironment, reconciling: ReconcilingEnvironment) -> None:
    """Ingest and query on one port; with an embedded read model, its single owner: indexer and reconciler too."""
    await _answer("core", embedded_app, settings, environment, reconciling, with_indexer=settings.qdrant.url is None)


async def _answer(
    process: str,
    make: Callable[[GatewaySettings, QueryComponents], FastAPI],
    settings: Settings,
    environment: GatewayEnvironment,
    reconciling: ReconcilingEnvironment,
    *,
    with_indexer: bool,
) -> None:
    """Open the components, and serve the app that `make` builds from them."""
    own = environment.gateway
    check_one_clip(settings.models, "FEATURES", environment.features)
    async with AsyncExitStack() as stack:
        breakers = Breakers(settings.breaker)
        files = await open_checked_files(
            stack, settings, own, breakers, process=f"{process}-embedded" if with_indexer else process
        )
        authenticator = await open_authenticator(own, environment.auth, files)
        events = await stack.enter_async_context(gateway_events(settings))
        read_model = await stack.enter_async_context(open_read_model(settings.qdrant, breakers))
        tower = await stack.enter_async_context(open_tower(settings.models))
        encoder = await stack.enter_async_context(
            open_encoder(settings.models, tower, require_sandbox=settings.sandbox.require)
        )
        maintenance = Maintenance.of(reconciling, settings.kafka, files=files, read_model=read_model, deliverer=events)
        own_parts = {RECONCILER: maintenance.part} if with_indexer else {}
        ready = readiness(
            own, KafkaAdmin(settings.kafka), files=files, breakers=breakers, read_model=read_model, own_parts=own_parts
        )
        await stack.enter_async_context(Watchdog(WatchdogSettings(process, settings.worker.loop_lag_s)))
        components = QueryComponents(
            files=files,
            events=events,
            readiness=ready,
            authenticator=authenticator,
            limits=await stack.enter_async_context(open_limits(environment.limits)),
            quotas=Quotas(environment.quotas, files),
            live=await stack.enter_async_context(open_feed(settings.kafka, environment.live)),
            read_model=read_model,
            encoder=encoder,
            features=await _features(stack, tower, environment.features, settings.sandbox),
            reconciling=maintenance,
            parameters_of=lambda name: pipeline.stage(name).parameters,
            letters=DeadLetterListing(settings.kafka, DeadLetterStore(settings.kafka, files, events)),
            numbers=await stack.enter_async_context(
                open_statistics_cache(
                    environment.statistics,
                    files,
                    read_model,
                    RecentLog(settings.kafka),
                    Backlog(KafkaAdmin(settings.kafka)),
                )
            ),
        )
        if with_indexer:
            await stack.enter_async_context(_indexer_in_process(settings, files, breakers, read_model))
            await stack.enter_async_context(maintenance.running())
        await serve_until_signal(make(own, components), environment, components.live)


async def _features(
    stack: AsyncExitStack, tower: ImageTower, own: FeatureSettings, sandbox: SandboxSettings
) -> Batching[Any]:
    """Open the feature API's encoder. The model loads and children start on first use."""
    encoder = await stack.enter_async_context(
        open_features(tower, decoders=own.decoders, max_bytes=own.max_bytes, require_sandbox=sandbox.require)
    )
    return await stack.enter_async_context(open_batching(encoder, own))


@asynccontextmanager
async def _indexer_in_process(
    settings: Settings, files: FileStore, breakers: Breakers, read_model: ReadModel
) -> AsyncIterator[None]:
    """Run the indexer in this process. If it ends early, the process exits and is restarted."""
    # A query process without an indexer does not load Faust.
    from streams.runtime.worker_process import consume  # noqa: PLC0415

    stage = pipeline.stage("indexer")
    own = pipeline.settings_of(stage)
    check_safe(settings, stage.name, own)
    stopping = asyncio.Event()
    until = asyncio.create_task(_until(stopping))
    consuming = asyncio.create_task(
        consume(
            stage,
            own,
            settings,
            health=breakers.health,
            files=files,
            breakers=breakers,
            read_model=read_model,
            until=until,
            find_stage=pipeline.stage,
        )
    )
    consuming.add_done_callback(lambda task: None if stopping.is_set() else exit_undeliverable(_cause(task)))
    try:
        yield
    finally:
        stopping.set()
        await consuming


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _cause(task: asyncio.Task[None]) -> BaseException:
    error = None if task.cancelled() else task.exception()
    return error or RuntimeError("the indexer exited")
