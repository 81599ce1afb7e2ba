"""The ingest gateway process: HTTP uploads in, Kafka and the object store out; no read model, no agents."""

from __future__ import annotations

from contextlib import AsyncExitStack

from darkroom.processes.gateway_runtime import GatewayEnvironment, _gateway_events, _opened_files, _serve_until_signal
from darkroom.processes.readiness import readiness
from gateway.access.authenticator import open_door
from gateway.apps.components import IngestParts
from gateway.apps.ingest import ingest_app
from gateway.limits.quotas import Quotas
from gateway.limits.rate_limits import open_limits
from streams.concurrency.circuit_breaker import Breakers
from streams.kafka.admin import KafkaAdmin
from streams.process.watchdog import Watchdog, WatchdogSettings
from streams.settings import Settings


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
