"""The worker processes: agents and the router. They import no HTTP API."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog
from pydantic import ValidationError

from agents import pipeline
from darkroom.processes.launch import explain, guarded, read_settings
from streams.kafka.access_check import check_access
from streams.kafka.access_rules import rules_of
from streams.kafka.admin import KafkaAdmin
from streams.kafka.producer import open_producer
from streams.lanes.bulk_scheduler import Scheduler
from streams.process.http_server import serving_health
from streams.process.settings_checks import check_safe
from streams.process.signals import until_signal
from streams.process.watchdog import Watchdog, WatchdogSettings
from streams.retries.delay_router import Router
from streams.runtime.worker_process import run_stage
from streams.settings import Settings
from streams.telemetry.health_board import Condition, HealthBoard
from streams.topics import AGENTS, PIPELINE, SCHEDULER_DEAD, agent_topics

log = structlog.get_logger(__name__)


def run_agent(name: str) -> int:
    """Run an agent until SIGTERM; return the exit code."""
    settings = read_settings(name)
    stage = pipeline.stage(name)
    try:
        own = pipeline.settings_of(stage)
    except ValidationError as error:
        return explain(error)
    log.info("stage settings", stage=name, **own.model_dump(mode="json"))
    return asyncio.run(run_stage(stage, own, settings, pipeline.stage))


def run_router() -> int:
    """Run the router until SIGTERM; return the exit code."""
    return asyncio.run(guarded(_router(read_settings("router"))))


async def _router(settings: Settings) -> None:
    health = HealthBoard()
    health.say("kafka", Condition.UNREADY, "joining")
    signalled = asyncio.create_task(until_signal())
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving_health(health, settings.worker))
        check_safe(settings)
        moved = [t for agent in AGENTS for t in agent_topics(agent) if "router" in (*t.readers, *t.writers)]
        await check_access(settings.kafka, rules_of("router"))
        await KafkaAdmin(settings.kafka).check_topics([*moved, *PIPELINE, SCHEDULER_DEAD])
        producer = await stack.enter_async_context(open_producer(settings.kafka, source="darkroom/router"))
        await stack.enter_async_context(Watchdog(WatchdogSettings("router", settings.worker.loop_lag_s)))
        router = Router(settings.kafka, producer, tiers=settings.retry.tiers)
        scheduler = Scheduler(settings.kafka, settings.lanes, producer, health)
        running = {asyncio.create_task(router.run()), asyncio.create_task(scheduler.run())}
        ready = asyncio.create_task(router.ready.wait())
        await asyncio.wait({signalled, ready, *running}, return_when=asyncio.FIRST_COMPLETED)
        health.say("kafka", Condition.OK, "routing")
        await asyncio.wait({signalled, *running}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        ended = [task for task in running if task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in ended:
            await task
