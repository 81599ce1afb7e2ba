"""The reconciler process: periodic reconciliation, janitor sweeps and reprocessing jobs; also run by the core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass

import structlog
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from agents.maintenance.janitor import Janitor, JanitorSettings, SweepReport
from agents.maintenance.reconciler import SOURCE, Reconciler, ReconcilerSettings
from darkroom.processes.launch import explain, guarded, read_settings
from schemas.http.reconciliation import ReconcileReport, Standing
from streams.concurrency.circuit_breaker import Breakers
from streams.errors import DependencyUnavailable
from streams.kafka.access_check import check_access
from streams.kafka.access_rules import rules_of
from streams.kafka.admin import KafkaAdmin
from streams.kafka.producer import Deliverer, open_producer
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.operations.consumer_lag import Backlog
from streams.operations.reprocess_jobs import ReprocessRunner
from streams.process.http_server import serving_health
from streams.process.settings_checks import check_safe
from streams.process.signals import until_signal
from streams.process.startup_checks import check_files
from streams.process.watchdog import Watchdog, WatchdogSettings
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.retries.dead_letters import DeadLetterStore
from streams.settings import KafkaSettings, Settings
from streams.telemetry.health_board import Condition, HealthBoard
from streams.topics import BULK, SCHEDULER, all_topics

log = structlog.get_logger(__name__)

RECONCILER = "reconciler"  # the process, and its health part


class ReconcilingEnvironment(BaseSettings):
    """The settings of the reconciler and of the janitor, from DARKROOM_RECONCILER__* and DARKROOM_JANITOR__*."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", env_nested_delimiter="__", frozen=True, extra="ignore", env_ignore_empty=True
    )

    reconciler: ReconcilerSettings = ReconcilerSettings()
    janitor: JanitorSettings = JanitorSettings()


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Reconciles, sweeps and reprocesses, on request or periodically. See gateway.protocols.Reconciling.

    Concurrent passes of several processes are harmless.
    """

    reconciler: Reconciler
    janitor: Janitor
    jobs: ReprocessRunner
    interval_s: float
    health: HealthBoard

    @classmethod
    def of(
        cls,
        environment: ReconcilingEnvironment,
        kafka: KafkaSettings,
        *,
        files: FileStore,
        read_model: ReadModel,
        deliverer: Deliverer,
        health: HealthBoard | None = None,
    ) -> Maintenance:
        """Return an instance of its settings and dependencies."""
        admin, health = KafkaAdmin(kafka), health or HealthBoard()
        health.say(RECONCILER, Condition.OK, "no pass yet")
        return cls(
            Reconciler(
                environment.reconciler, files=files, read_model=read_model, deliverer=deliverer, progress=Backlog(admin)
            ),
            Janitor(files, read_model, environment.janitor, letters=DeadLetterStore(kafka, files, deliverer)),
            ReprocessRunner(files, read_model, deliverer, waiting=lambda: admin.lag(SCHEDULER, [BULK.name])),
            environment.reconciler.interval_s,
            health,
        )

    async def reconcile(self, *, dry_run: bool) -> ReconcileReport:
        """Run one full pass and sweep."""
        report = await self.reconciler.look(dry_run=dry_run, everything=True)
        return report.model_copy(update={"swept": _counts(await self.janitor.sweep(dry_run=dry_run))})

    async def part(self) -> tuple[bool, str]:
        """Return the time of the last pass; a health part that never makes a gateway unready."""
        return True, self.health.snapshot()[RECONCILER]["detail"]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run passes, sweeps and reprocessing jobs in the background within the block."""
        tasks = [asyncio.create_task(body) for body in (self._passes(), self._reprocessing())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _passes(self) -> None:
        """Run passes periodically. A failed pass is logged and the next one follows."""
        last = "none yet"
        while True:
            try:
                report = await self.reconciler.look()
                await self.janitor.sweep()
                last = report.at
                self.health.say(RECONCILER, Condition.OK, f"last pass: {last}; {_sentence(report)}")
            except DependencyUnavailable as error:
                self.health.say(RECONCILER, Condition.DEGRADED, f"last pass: {last}; a dependency is unavailable")
                log.warning("reconciliation failed: dependency unavailable", error=str(error))
            except Exception:
                self.health.say(RECONCILER, Condition.DEGRADED, f"last pass: {last}; a later pass failed, see the log")
                log.exception("reconciliation failed")
            await asyncio.sleep(self.interval_s)

    async def _reprocessing(self) -> None:
        while True:
            try:
                await self.jobs.run()
            except Exception:
                log.exception("reprocessing failed; resuming at its cursor")
            await asyncio.sleep(self.interval_s)


def run_reconciler() -> int:
    """Run the reconciler until SIGTERM; return the exit code."""
    settings = read_settings(RECONCILER)
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
        await check_access(settings.kafka, rules_of(RECONCILER))
        await KafkaAdmin(settings.kafka).check_topics(topic for topic in all_topics() if RECONCILER in topic.writers)
        breakers = Breakers(settings.breaker, health)
        files = await stack.enter_async_context(open_files(settings.files, breakers))
        await check_files(files, settings.files)
        read_model = await stack.enter_async_context(open_read_model(settings.qdrant, breakers))
        deliverer = await stack.enter_async_context(open_producer(settings.kafka, source=SOURCE))
        await stack.enter_async_context(Watchdog(WatchdogSettings(RECONCILER, settings.worker.loop_lag_s)))
        maintenance = Maintenance.of(
            environment, settings.kafka, files=files, read_model=read_model, deliverer=deliverer, health=health
        )
        await stack.enter_async_context(maintenance.running())
        health.say("stores", Condition.OK, "open")
        await signalled


def _sentence(report: ReconcileReport) -> str:
    unfinished = sum(sum(found.values()) for found in report.unfinished.values())
    stuck = sum(found.get(Standing.STUCK, 0) for found in report.unfinished.values())
    sent = sum(report.sent.values())
    return f"{unfinished} unfinished, {report.overdue_count} overdue, {sent} sent again, {stuck} stuck"


def _counts(swept: SweepReport) -> dict[str, int]:
    found = {name: value for name, value in asdict(swept).items() if isinstance(value, int) and name != "dry_run"}
    return {**found, "late": swept.late.total()}
