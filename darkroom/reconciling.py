"""The reconciler's process, and its place beside the indexer: passes, sweeps and reprocessing jobs, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass

import structlog
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from agents.janitor import Janitor, JanitorSettings, SweepReport
from agents.reconciler import SOURCE, Reconciler, ReconcilerSettings
from darkroom.workers import explain, guarded, read_settings
from schemas.envelope import now
from schemas.reconciliation import ReconcileReport, Standing
from streams.admin import KafkaAdmin
from streams.backlog import Backlog
from streams.breaker import Breakers
from streams.dead_letters import DeadLetterOffice
from streams.errors import DependencyAway
from streams.files import FileStore, open_files
from streams.health import Condition, HealthBoard
from streams.process import until_signal
from streams.producer import Deliverer, open_producer
from streams.reprocessing import ReprocessRunner
from streams.safety import check_safe
from streams.serving import serving_health
from streams.settings import KafkaSettings, Settings
from streams.starting import check_files
from streams.topics import AGENTS, BULK, SCHEDULER, agent_topics
from streams.vectors import ReadModel, open_read_model
from streams.watchdog import Watchdog, WatchdogSettings

log = structlog.get_logger(__name__)

PART = "reconciler"  # its line on the health board


class ReconcilingEnvironment(BaseSettings):
    """The settings of the reconciler and of the janitor, from DARKROOM_RECONCILER__* and DARKROOM_JANITOR__*."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )

    reconciler: ReconcilerSettings = ReconcilerSettings()
    janitor: JanitorSettings = JanitorSettings()


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Looks over everything and tidies up. See gateway.ports.Reconciling."""

    reconciler: Reconciler
    janitor: Janitor

    async def reconcile(self, *, dry_run: bool) -> ReconcileReport:
        """Look at everything once, now."""
        report = await self.reconciler.look(dry_run=dry_run, everything=True)
        return report.model_copy(update={"swept": _counts(await self.janitor.sweep(dry_run=dry_run))})

    async def one_pass(self) -> str:
        """Look over what is due now; return a sentence about it."""
        report = await self.reconciler.look()
        await self.janitor.sweep()
        waiting = sum(sum(found.values()) for found in report.unfinished.values())
        stuck = sum(found.get(Standing.STUCK, 0) for found in report.unfinished.values())
        sent = sum(report.sent.values())
        return f"{waiting} unfinished, {report.overdue_count} overdue, {sent} sent again, {stuck} stuck"


def upkeep_of(
    environment: ReconcilingEnvironment,
    kafka: KafkaSettings,
    *,
    files: FileStore,
    vectors: ReadModel,
    deliverer: Deliverer,
) -> Upkeep:
    """Put an upkeep together. Any process with the read model can: two at once are harmless."""
    progress = Backlog(KafkaAdmin(kafka))
    reconciler = Reconciler(
        environment.reconciler, files=files, vectors=vectors, deliverer=deliverer, progress=progress
    )
    office = DeadLetterOffice(kafka, files, deliverer)
    return Upkeep(reconciler, Janitor(files, vectors, environment.janitor, letters=office))


@asynccontextmanager
async def upkeep_beside(
    upkeep: Upkeep,
    interval_s: float,
    kafka: KafkaSettings,
    health: HealthBoard,
    *,
    files: FileStore,
    vectors: ReadModel,
    deliverer: Deliverer,
) -> AsyncIterator[None]:
    """Have passes, sweeps and reprocessing jobs done while the body runs."""
    admin = KafkaAdmin(kafka)
    jobs = ReprocessRunner(files, vectors, deliverer, waiting=lambda: admin.lag(SCHEDULER, [BULK.name]))
    health.say(PART, Condition.OK, "no pass yet")
    bodies = (_passes(upkeep, interval_s, health), _kept_up(jobs.run, interval_s))
    tasks = [asyncio.create_task(body) for body in bodies]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_reconciler() -> int:
    """Be the reconciler until SIGTERM; return the exit code."""
    settings = read_settings("reconciler")
    try:
        environment = ReconcilingEnvironment()
    except ValidationError as error:
        return explain(error)
    return asyncio.run(guarded(_reconcile(settings, environment)))


async def _reconcile(settings: Settings, environment: ReconcilingEnvironment) -> None:
    health = HealthBoard()
    health.say("stores", Condition.UNREADY, "opening")
    signalled = asyncio.create_task(until_signal())
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving_health(health, settings.worker))
        check_safe(settings)
        await KafkaAdmin(settings.kafka).check_topics(topic for agent in AGENTS for topic in agent_topics(agent))
        breakers = Breakers(settings.breaker, health)
        files = await stack.enter_async_context(open_files(settings.files, breakers))
        await check_files(files, settings.files)
        vectors = await stack.enter_async_context(open_read_model(settings.qdrant, breakers))
        deliverer = await stack.enter_async_context(open_producer(settings.kafka, source=SOURCE))
        await stack.enter_async_context(Watchdog(WatchdogSettings(PART, settings.worker.loop_lag_s)))
        upkeep = upkeep_of(environment, settings.kafka, files=files, vectors=vectors, deliverer=deliverer)
        await stack.enter_async_context(
            upkeep_beside(
                upkeep,
                environment.reconciler.interval_s,
                settings.kafka,
                health,
                files=files,
                vectors=vectors,
                deliverer=deliverer,
            )
        )
        health.say("stores", Condition.OK, "open")
        await signalled


async def _passes(upkeep: Upkeep, interval_s: float, health: HealthBoard) -> None:
    """Do one pass after the other. What is away now is looked at next time; a bug of ours ends no process."""
    last = "never"
    while True:
        try:
            said = await upkeep.one_pass()
            last = now()
            health.say(PART, Condition.OK, f"last pass at {last}: {said}")
            log.info("reconciled", found=said)
        except DependencyAway as error:
            health.say(PART, Condition.DEGRADED, f"last pass: {last}; something it needs is away")
            log.warning("cannot reconcile now", error=str(error))
        except Exception:
            health.say(PART, Condition.DEGRADED, f"last pass: {last}; the one after it failed, see the log")
            log.exception("a pass failed")
        await asyncio.sleep(interval_s)


async def _kept_up(body: Callable[[], Awaitable[None]], pause_s: float) -> None:
    while True:
        try:
            await body()
        except Exception:
            log.exception("begins anew after a pause", pause_s=pause_s)
        await asyncio.sleep(pause_s)


def _counts(swept: SweepReport) -> dict[str, int]:
    found = {name: value for name, value in asdict(swept).items() if isinstance(value, int) and name != "dry_run"}
    return {**found, "late": swept.late.total()}
