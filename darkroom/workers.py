"""The worker processes, each opened from its settings: agents and the router. They load nothing of HTTP APIs."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack

import structlog
from pydantic import ValidationError
from pydantic_settings import SettingsError

from agents import pipeline
from streams.admin import KafkaAdmin
from streams.allocation import give_memory_back
from streams.errors import DependencyAway, NotReady
from streams.health import Condition, HealthBoard
from streams.logs import configure_logs
from streams.process import EXIT_NOT_READY, run_stage, until_signal
from streams.producer import open_producer
from streams.router import Router
from streams.safety import check_safe
from streams.scheduler import Scheduler
from streams.serving import serving_health
from streams.settings import Settings
from streams.topics import AGENTS, PIPELINE, SCHEDULER_DEAD, agent_topics
from streams.watchdog import Watchdog, WatchdogSettings
from streams.worker import EXIT_UNDELIVERABLE

log = structlog.get_logger(__name__)

_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|REDIS")


def read_settings(process: str) -> Settings:
    """Read the shared settings, set up logging and memory; exit 2 naming what is wrong."""
    give_memory_back()
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        raise SystemExit(explain(error)) from error
    configure_logs(settings.telemetry, process=process)
    log.info("settings", **settings.model_dump(mode="json"))
    return settings


def explain(error: ValidationError | SettingsError) -> int:
    """Write one line per wrong setting to stderr, naming its variable, and no secret; return the exit code."""
    if isinstance(error, SettingsError):  # a list or an object that is no JSON
        sys.stderr.write(f"DARKROOM_*: {error}\n")
        return EXIT_NOT_READY
    for item in error.errors(include_url=False):
        variable = "DARKROOM_" + "__".join(str(part).upper() for part in item["loc"])
        given = item.get("input")
        open_ = not _SECRET.search(variable) and not isinstance(given, dict | list | tuple)  # they may hold secrets
        sys.stderr.write(f"{variable}: {item['msg']}" + (f" (it is {given!r})" if open_ else "") + "\n")
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
    return asyncio.run(guarded(_router(read_settings("router"))))


async def guarded(body: Coroutine[object, object, None]) -> int:
    """Run a process's body; return the exit code that says how it ended."""
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
        await stack.enter_async_context(serving_health(health, settings.worker))
        check_safe(settings)
        moved = [t for agent in AGENTS for t in agent_topics(agent) if "router" in (*t.readers, *t.writers)]
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
