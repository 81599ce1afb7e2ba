"""Shared by all gateway processes: settings, start-up checks, object store, serving until a signal."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack

import structlog
from fastapi import FastAPI
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.access.settings import AuthSettings
from gateway.limits.settings import QuotaSettings, RateLimitSettings
from gateway.operations.settings import StatisticsSettings
from gateway.search.feature_batching import FeatureSettings
from gateway.settings import GatewaySettings
from streams.concurrency.circuit_breaker import Breakers
from streams.errors import DependencyUnavailable, NotReady
from streams.kafka.access_check import check_access
from streams.kafka.access_rules import rules_of
from streams.kafka.admin import KafkaAdmin
from streams.kafka.producer import EventProducer, open_producer
from streams.live.log_follower import LiveSettings, LogFeed
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.process.bounded_http import ServerSettings
from streams.process.http_server import serving
from streams.process.settings_checks import check_safe
from streams.process.signals import until_signal
from streams.process.startup_checks import check_files
from streams.settings import Settings
from streams.topics import PIPELINE

log = structlog.get_logger(__name__)


class GatewayEnvironment(BaseSettings):
    """The gateway's settings, from DARKROOM_GATEWAY__* and the groups named by the other fields."""

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


async def serve_until_signal(app: FastAPI, environment: GatewayEnvironment, live: LogFeed | None = None) -> None:
    """Serve an app until SIGINT or SIGTERM, then close its live feed and finish open requests."""
    own = environment.gateway
    async with serving(app, own.host, own.port, environment.server) as port:
        log.info("listening", url=f"http://{own.host}:{port}")
        await until_signal()
        if live is not None:
            live.close()  # open streams would block the shutdown


def _confirm_s(settings: Settings) -> float:
    return min(settings.kafka.request_timeout_s, 10.0)


def gateway_events(settings: Settings) -> AbstractAsyncContextManager[EventProducer]:
    """Open a producer that connects lazily, so that a gateway starts and answers 503 while Kafka is unavailable."""
    kafka = settings.kafka.model_copy(update={"request_timeout_s": _confirm_s(settings)})
    return open_producer(kafka, source="darkroom/gateway", now=False)


def check_gateway(settings: Settings, own: GatewaySettings) -> None:
    """Check the timeouts of a gateway against each other. Raises NotReady with all problems."""
    problems = []
    if own.delivery_timeout_s <= _confirm_s(settings):
        # Otherwise a 503 could be answered for an event that Kafka still confirms.
        problems.append(
            f"DARKROOM_GATEWAY__DELIVERY_TIMEOUT_S ({own.delivery_timeout_s:g}) must exceed Kafka's "
            f"confirmation timeout of {_confirm_s(settings):g} s"
        )
    if own.max_spool_bytes < (largest := max(own.max_upload_bytes, own.max_batch_bytes)):
        # Otherwise the largest uploads could never be received.
        problems.append(
            f"DARKROOM_GATEWAY__MAX_SPOOL_BYTES ({own.max_spool_bytes}) must be at least {largest}: "
            "DARKROOM_GATEWAY__MAX_BATCH_BYTES and DARKROOM_GATEWAY__MAX_UPLOAD_BYTES"
        )
    if own.upload_idle_s > own.upload_total_s:
        # Otherwise the idle timeout would never apply.
        problems.append(
            f"DARKROOM_GATEWAY__UPLOAD_IDLE_S ({own.upload_idle_s:g}) must not exceed DARKROOM_GATEWAY__UPLOAD_TOTAL_S "
            f"({own.upload_total_s:g})"
        )
    for name, seconds in (("STORAGE", own.storage_timeout_s), ("QUERY", own.query_timeout_s)):
        if seconds <= settings.breaker.slow_s:
            # Otherwise timed-out calls would not count as failures, and the breaker would never open.
            problems.append(
                f"DARKROOM_GATEWAY__{name}_TIMEOUT_S ({seconds:g}) must exceed DARKROOM_BREAKER__SLOW_S "
                f"({settings.breaker.slow_s:g})"
            )
    if problems:
        raise NotReady("unsafe settings: " + "; ".join(problems))


async def open_checked_files(
    stack: AsyncExitStack, settings: Settings, own: GatewaySettings, breakers: Breakers, *, process: str
) -> FileStore:
    """Run a gateway's start-up checks; return its object store, checked for write and read access.

    `process`: its name in the table of ACLs. Raises NotReady and DependencyUnavailable.
    """
    check_safe(settings)
    check_gateway(settings, own)
    try:
        await check_access(settings.kafka, rules_of(process))
        await KafkaAdmin(settings.kafka).check_topics(topic for topic in PIPELINE if "gateway" in topic.writers)
    except DependencyUnavailable as error:
        log.warning("Kafka unavailable; uploads are answered 503", error=str(error))
    files = await stack.enter_async_context(open_files(settings.files, breakers))
    await check_files(files, settings.files)
    return files
