"""A worker process: opens a stage's dependencies, runs the stage until SIGTERM, drains, and exits.

Exit codes: 0 drained; 1 not drained in time (Kafka redelivers the rest); 2 invalid settings or a missing requirement;
70 an output could not be delivered; 71 the watchdog found it stuck; 72 Faust stopped by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import structlog

from streams.concurrency.circuit_breaker import Breakers
from streams.errors import DISK_FULL, DependencyUnavailable, NotReady
from streams.kafka.access_check import check_access
from streams.kafka.access_rules import rules_of
from streams.kafka.admin import KafkaAdmin
from streams.kafka.producer import open_producer
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.object_store.results import ResultStore
from streams.operations.agent_pauses import DEGRADED_RENEWAL_S, Control
from streams.process.exit_codes import (
    EXIT_NOT_DRAINED,
    EXIT_NOT_READY,
    EXIT_UNDELIVERABLE,
    exit_faust_stopped,
    exit_undeliverable,
)
from streams.process.http_server import serving_health
from streams.process.settings_checks import check_safe
from streams.process.signals import until_signal
from streams.process.startup_checks import check_files
from streams.process.watchdog import Watchdog, WatchdogSettings
from streams.read_model.protocol import ReadModel
from streams.retries.dead_letter_limit import DeadLetterLimit
from streams.retries.retry_policy import RetryPolicy
from streams.runtime.execution import Services
from streams.runtime.fault_injection import fault_injection_hook
from streams.runtime.faust_worker import FaustWorker, Subscription
from streams.runtime.poison_events import PoisonEventTracker, poison_event_tracker
from streams.runtime.record_intake import Intake
from streams.runtime.runner import Runner
from streams.runtime.tombstone_check import TombstoneCheck
from streams.settings import Settings, WorkerSettings
from streams.stage import FindStage, Resources, Stage, StageSettings, no_stages
from streams.telemetry import metrics
from streams.telemetry.health_board import Condition, HealthBoard
from streams.topics import FACTS, agent_topics

LAG_INTERVAL_S = 5.0
START_TIMEOUT_S = 300.0  # for joining a group that may be rebalancing

log = structlog.get_logger(__name__)


def code_version() -> str:
    """Return the installed version of Darkroom."""
    try:
        return version("darkroom")
    except PackageNotFoundError:
        return "unknown"


def worker_name() -> str:
    """Return this process's name in reports and pause marks: host/pid."""
    return f"{socket.gethostname()}/{os.getpid()}"


class Halt:
    """Whether a stage stopped itself, and why."""

    def __init__(self) -> None:
        self.reason = ""
        self.event = asyncio.Event()

    def stop(self, reason: str) -> None:
        """Stop; the first reason is kept."""
        self.reason = self.reason or reason
        self.event.set()


@dataclass(frozen=True, slots=True)
class RunningStage:
    """A stage that consumes."""

    worker: FaustWorker
    halt: Halt
    markers: PoisonEventTracker


@asynccontextmanager
async def running_stage(
    stage: Stage[Any, Any, Any],
    stage_settings: StageSettings,
    settings: Settings,
    *,
    health: HealthBoard,
    files: FileStore,
    breakers: Breakers | None = None,
    read_model: ReadModel | None = None,
    find_stage: FindStage = no_stages,
) -> AsyncIterator[RunningStage]:
    """Open the tools and join the group; on exit drain and leave it. Raises NotReady and DependencyUnavailable."""
    halt = Halt()
    subscription = Subscription.of(stage.name, stage.consumes, stage_settings, settings.retry, settings.breaker)
    hook = fault_injection_hook()
    needed = dict.fromkeys((*stage.consumes, *stage.emits, FACTS, *agent_topics(stage.name)))
    await check_access(settings.kafka, rules_of(stage.name))
    await KafkaAdmin(settings.kafka).check_topics(needed)
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(open_producer(settings.kafka, source=f"darkroom/{stage.name}"))
        resources = Resources(
            settings=settings,
            files=files,
            health=health,
            breakers=breakers,
            read_model=read_model,
            find_stage=find_stage,
        )
        tools = await stack.enter_async_context(stage.open(stage_settings, resources))
        markers = _markers(stack, stage.name, settings)
        services = Services(
            deliverer=producer,
            results=ResultStore(files),
            retry=RetryPolicy(settings.retry),
            fatal=partial(_exit_undeliverable, markers),
            limit=DeadLetterLimit(settings.limit),
            halt=halt.stop,
            worker=worker_name(),
            code_version=code_version(),
            hook=hook,
            markers=markers,
            breakers=breakers,
            deletion_check=TombstoneCheck(files),
            other_buckets=settings.files.other_buckets,
        )
        runner = Runner(stage, tools, stage_settings, services)
        stack.push_async_callback(runner.close)
        intake = Intake(runner)

        worker = FaustWorker(
            subscription,
            intake,
            kafka=settings.kafka,
            worker=settings.worker,
            health=health,
            before_commit=partial(hook, "before-commit"),
        )
        overdue_s = 2 * subscription.slowest_s + 30

        def overdue() -> str | None:
            oldest = runner.oldest_s()
            return f"an event is in flight for {oldest:.0f} s" if oldest > overdue_s else None

        limits = WatchdogSettings(stage.name, loop_lag_s=settings.worker.loop_lag_s)
        await stack.enter_async_context(Watchdog(limits, checks=(overdue, worker.stuck)))
        await _join(worker, markers)
        try:
            yield RunningStage(worker, halt, markers)
        finally:
            drained = await worker.stop()
            log.info("stopped", stage=stage.name, drained=drained)
            if not drained:
                # Work that ignores its deadline occupies threads, which only an exit frees; nothing is lost.
                markers.clear()
                sys.stderr.flush()
                os._exit(EXIT_NOT_DRAINED)


def _markers(stack: AsyncExitStack, agent: str, settings: Settings) -> PoisonEventTracker:
    """Open a slot for crash markers, per cluster and prefix: offsets have no meaning outside them."""
    kafka = settings.kafka
    cluster = hashlib.sha256(f"{kafka.bootstrap} {kafka.prefix}".encode()).hexdigest()[:12]
    folder = settings.worker.state_dir / cluster
    try:
        markers = stack.enter_context(poison_event_tracker(folder, agent, limit=settings.worker.crash_limit))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DependencyUnavailable(f"disk full: {folder} (DARKROOM_WORKER__STATE_DIR)") from error
        raise NotReady(f"DARKROOM_WORKER__STATE_DIR: {folder} is not usable: {error}") from error
    if suspects := markers.suspects():
        log.warning("previous worker crashed; isolating its in-flight events", events=suspects)
    return markers


async def _join(worker: FaustWorker, markers: PoisonEventTracker) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            await worker.start()
    except TimeoutError as error:  # a partly started Faust has threads that only an exit ends
        _exit_undeliverable(markers, error)


def _exit_undeliverable(markers: PoisonEventTracker, error: BaseException) -> None:
    markers.clear()
    exit_undeliverable(error)


async def keep_lag(worker: FaustWorker) -> None:
    """Refresh the lag metric every `LAG_INTERVAL_S`, so that a scrape does not compute it."""
    while True:
        await asyncio.sleep(LAG_INTERVAL_S)
        try:
            worker.lag()
        except Exception as error:  # during a rebalance Faust's consumer has no assignment
            log.debug("lag unknown", error=repr(error))


async def run_stage(
    stage: Stage[Any, Any, Any], stage_settings: StageSettings, settings: Settings, find_stage: FindStage = no_stages
) -> int:
    """Run one stage as this process; return the exit code."""
    health = HealthBoard()
    health.say("stage", Condition.UNREADY, "opening")
    signalled = asyncio.create_task(until_signal())
    try:
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(serving_health(health, settings.worker))
            log.info("health and metrics", url=f"http://{settings.worker.http_host}:{port}")
            check_safe(settings, stage.name, stage_settings)
            breakers = Breakers(settings.breaker, health)
            files = await stack.enter_async_context(open_files(settings.files, breakers))
            await check_files(files, settings.files)
            await consume(
                stage,
                stage_settings,
                settings,
                health=health,
                files=files,
                breakers=breakers,
                until=signalled,
                find_stage=find_stage,
            )
    except NotReady as error:
        log.critical("cannot start", reason=str(error))
        return EXIT_NOT_READY
    except DependencyUnavailable as error:
        log.critical("dependency unavailable", reason=str(error))
        return EXIT_UNDELIVERABLE
    finally:
        signalled.cancel()
    return 0


async def consume(
    stage: Stage[Any, Any, Any],
    stage_settings: StageSettings,
    settings: Settings,
    *,
    health: HealthBoard,
    files: FileStore,
    until: asyncio.Task[None],
    breakers: Breakers | None = None,
    read_model: ReadModel | None = None,
    find_stage: FindStage = no_stages,
) -> None:
    """Consume until `until` is done; leave the group while the agent is paused, and rejoin when it is resumed.

    Raises NotReady and DependencyUnavailable. Exits the process if Faust stops by itself.
    """
    control = Control(files)
    while not until.done():
        if await _waited_while_paused(stage.name, control, health, settings.worker, until):
            continue
        opened = running_stage(
            stage,
            stage_settings,
            settings,
            health=health,
            files=files,
            breakers=breakers,
            read_model=read_model,
            find_stage=find_stage,
        )
        async with opened as running:
            health.say("stage", Condition.OK, "")
            lag = asyncio.create_task(keep_lag(running.worker))
            probing = asyncio.create_task(breakers.keep_probing()) if breakers is not None else None
            publishing = asyncio.create_task(_publish_degraded(stage.name, control, health, settings.worker, breakers))
            stopped = asyncio.create_task(running.worker.until_stopped())
            halted = asyncio.create_task(running.halt.event.wait())
            paused = asyncio.create_task(_until_paused(stage.name, control, settings.worker))
            await asyncio.wait({until, stopped, halted, paused}, return_when=asyncio.FIRST_COMPLETED)
            for task in (lag, publishing, halted, paused, probing):
                if task is not None:
                    task.cancel()
            if stopped.done():
                running.markers.clear()
                exit_faust_stopped(stage.name)
            stopped.cancel()
            log.info("stopping; draining events in flight", stage=stage.name)
            if reason := running.halt.reason:
                health.say("stage", Condition.UNREADY, f"stopped itself: {reason}")
                log.critical("dead-letter limit reached; pausing the agent", stage=stage.name, reason=reason)
                await control.pause(stage.name, reason, by=worker_name())


async def _waited_while_paused(
    agent: str, control: Control, health: HealthBoard, settings: WorkerSettings, until: asyncio.Task[None]
) -> bool:
    """Wait one interval and return True if the agent is paused, or if its state cannot be read."""
    try:
        mark = await control.paused(agent)
    except DependencyUnavailable as error:
        # Every event would fail without the store: wait for it instead of consuming.
        health.say("stage", Condition.UNREADY, "the object store is unavailable")
        log.warning("cannot read whether the agent is paused", stage=agent, error=str(error))
        await asyncio.wait({until}, timeout=settings.control_interval_s)
        with suppress(DependencyUnavailable):
            await control.files.check()  # a probe: passes the open breaker, and closes it on success
        return True
    if mark is None:
        metrics.PAUSED.labels(agent).set(0)
        return False
    metrics.PAUSED.labels(agent).set(1)
    health.say("stage", Condition.UNREADY, f"paused by {mark.by} since {mark.at}: {mark.reason}")
    log.error("agent paused; resume with `darkroom agents resume`", stage=agent, reason=mark.reason, by=mark.by)
    await asyncio.wait({until}, timeout=settings.control_interval_s)
    return True


async def _publish_degraded(
    agent: str, control: Control, health: HealthBoard, settings: WorkerSettings, breakers: Breakers | None
) -> None:
    """Keep in the store what this replica runs without, for the other processes; open breakers excluded."""
    temporary = breakers.names() if breakers is not None else frozenset()
    stored: str | None = ""  # unknown: a mark may be left of a process of the same name
    renew_at = 0.0
    while True:
        reason = health.degraded(without=temporary)
        if reason != stored or (reason is not None and time.monotonic() >= renew_at):
            try:
                await control.set_degraded(agent, reason, by=worker_name())
            except DependencyUnavailable as error:
                log.warning("cannot store whether the agent is degraded", stage=agent, error=str(error))
            else:
                stored, renew_at = reason, time.monotonic() + DEGRADED_RENEWAL_S
        await asyncio.sleep(settings.control_interval_s)


async def _until_paused(agent: str, control: Control, settings: WorkerSettings) -> None:
    """Return when the agent is paused; an unavailable store does not pause it."""
    while True:
        await asyncio.sleep(settings.control_interval_s)
        try:
            if await control.paused(agent) is not None:
                return
        except DependencyUnavailable as error:
            log.warning("cannot read whether the agent is paused", error=str(error))
