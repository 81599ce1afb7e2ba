"""The ingest gateway process: HTTP uploads in, Kafka and the object store out; no read model, no agents."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from pydantic import ValidationError
from pydantic_settings import SettingsError

from darkroom.processes.gateway_runtime import (
    GatewayEnvironment,
    gateway_events,
    open_checked_files,
    serve_until_signal,
)
from darkroom.processes.launch import explain, guarded, read_settings
from darkroom.processes.readiness import readiness
from gateway.access.authenticator import open_authenticator
from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.limits.quotas import Quotas
from gateway.limits.rate_limits import open_limits
from streams.concurrency.circuit_breaker import Breakers
from streams.kafka.admin import KafkaAdmin
from streams.process.watchdog import Watchdog, WatchdogSettings
from streams.settings import Settings


def run_ingest() -> int:
    """Run the ingest gateway until SIGTERM; return the exit code."""
    settings = read_settings("ingest")
    try:
        environment = GatewayEnvironment()
    except (ValidationError, SettingsError) as error:
        return explain(error)
    return asyncio.run(guarded(_ingest(settings, environment)))


async def _ingest(settings: Settings, environment: GatewayEnvironment) -> None:
    own = environment.gateway
    async with AsyncExitStack() as stack:
        breakers = Breakers(settings.breaker)
        files = await open_checked_files(stack, settings, own, breakers, process="gateway")
        authenticator = await open_authenticator(own, environment.auth, files)
        events = await stack.enter_async_context(gateway_events(settings))
        ready = readiness(own, KafkaAdmin(settings.kafka), files=files, breakers=breakers)
        await stack.enter_async_context(Watchdog(WatchdogSettings("ingest", settings.worker.loop_lag_s)))
        limits = await stack.enter_async_context(open_limits(environment.limits))
        components = IngestComponents(
            files=files,
            events=events,
            readiness=ready,
            authenticator=authenticator,
            limits=limits,
            quotas=Quotas(environment.quotas, files),
        )
        await serve_until_signal(ingest_app(own, components), environment)
