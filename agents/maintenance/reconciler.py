"""The reconciler finds overdue images and resends the event that each waits for.

It sends the event to the retry topic of the one agent concerned, with the id of the lost one. It skips agents that are
paused and events that the agent has not reached yet. After some tries without effect an image counts as stuck: shown
and counted, no longer retried. Two concurrent reconcilers repeat each other's work, which is harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from pydantic import Field

from agents.maintenance.inventory import Found, Inventory, InventorySettings
from agents.maintenance.overdue import Reason, Waiting, event_to_resend
from agents.maintenance.resend_attempts import Attempt, Attempts
from schemas.events.envelope import Event, Outgoing, now
from schemas.http.reconciliation import OldestUnfinished, OverdueItem, ReconcileReport, Standing
from streams.kafka.producer import Deliverer
from streams.object_store.protocol import FileStore
from streams.operations.agent_pauses import Control
from streams.read_model.protocol import ReadModel
from streams.telemetry import metrics
from streams.topics import AGENTS, SCHEDULER, retry_topic

log = structlog.get_logger(__name__)

SOURCE = "darkroom/reconciler"
SHOWN = 100  # of each list in a report
PRODUCED_WITHIN_S = 60.0  # between a record's change and the event produced for it


class ReconcilerSettings(InventorySettings):
    """When an image is overdue, and how often its event is resent; DARKROOM_RECONCILER__…"""

    interval_s: float = Field(60.0, gt=0, description="seconds between two passes")
    again_s: float = Field(3600.0, gt=0, description="seconds before the same event is sent again")
    tries: int = Field(3, ge=1, description="times an event is sent again before its image counts as stuck")
    max_per_pass: int = Field(100, ge=1, description="events sent in one pass at most, the oldest images first")


class Progress(Protocol):
    """Consumer progress of the agents and the scheduler (streams.operations.consumer_lag.Backlog)."""

    async def oldest(self, agent: str) -> float | None:
        """Return when an agent's oldest unfinished event was produced (unix seconds), None if there is none."""


@dataclass(slots=True)
class _Pass:
    """Findings and actions of one pass."""

    dry_run: bool
    now: float
    unfinished: dict[str, Counter[Standing]] = field(default_factory=lambda: defaultdict(Counter))
    oldest: tuple[float, Found] | None = None
    tried: set[str] = field(default_factory=set)  # images with an earlier resend
    overdue: list[tuple[Found, Waiting]] = field(default_factory=list)
    noted: int = 0
    items: list[OverdueItem] = field(default_factory=list)  # the first SHOWN
    sent: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)


class Reconciler:
    """Checks all images. One pass at a time; calls raise DependencyUnavailable."""

    def __init__(
        self,
        settings: ReconcilerSettings,
        *,
        files: FileStore,
        read_model: ReadModel,
        deliverer: Deliverer,
        progress: Progress,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._read_model = read_model
        self._deliverer = deliverer
        self._progress = progress
        self._clock = clock
        self._control = Control(files)
        self._attempts = Attempts(files)
        self._inventory = Inventory(files, read_model, settings)
        self._lock = asyncio.Lock()

    async def look(self, *, dry_run: bool = False, everything: bool = False) -> ReconcileReport:
        """Check receipts, records and the next page of objects (or all), and resend the events of overdue images.

        A dry run changes nothing and reports what would be sent.
        """
        async with self._lock:
            began, run = time.monotonic(), _Pass(dry_run, self._clock())
            await self._inventory.resume()
            await self._collect(run, everything=everything)
            await self._resend(run)
            if not dry_run:
                await self._inventory.store_positions()
            report = await self._report(run, time.monotonic() - began, everything=everything)
        if not dry_run:
            _expose(report)
        return report

    async def _collect(self, run: _Pass, *, everything: bool) -> None:
        found: dict[str, Found] = {}
        async for image in self._inventory.unfinished(run.now, everything=everything):
            found[image.image_id] = image
        async for image in self._inventory.damaged(run.now, everything=everything):
            found.setdefault(image.image_id, image)
            for stage, _ in image.missing if not run.dry_run else ():
                metrics.MISSING_OBJECTS.labels(stage).inc()
        run.tried = await self._attempts.images()
        for image_id in run.tried - found.keys():
            image = await self._inventory.examine(image_id)
            if image.waiting or image.missing:
                found[image_id] = image
            elif not run.dry_run:
                await self._attempts.forget(image_id)
        for image in found.values():
            self._sort(run, image)

    def _sort(self, run: _Pass, image: Found) -> None:
        if image.waiting and (run.oldest is None or image.accepted_at < run.oldest[0]):
            run.oldest = (image.accepted_at, image)
        for waiting in image.waiting:
            if run.now - waiting.since > self._settings.overdue_s:
                run.overdue.append((image, waiting))
            else:
                run.unfinished[waiting.agent][Standing.WAITING] += 1
        run.missing.extend(key for _, key in image.missing)
        run.overdue.extend((image, waiting) for waiting in _repairs(image))

    async def _resend(self, run: _Pass) -> None:
        """Resend overdue events that neither pause nor backlog explains; unfinished images first, then the oldest."""
        run.overdue.sort(key=lambda pair: (pair[1].reason is Reason.OBJECT_MISSING, pair[1].since))
        paused = {mark.agent for mark in await self._control.all()}
        readers = {reader for _, one in run.overdue for reader in _possible_readers(one)}
        behind = {reader: await self._progress.oldest(reader) for reader in readers}
        explained: list[tuple[Found, Waiting, Standing]] = []
        for image, waiting in run.overdue:
            if waiting.agent in paused:
                explained.append((image, waiting, Standing.PAUSED))
            elif any(self._is_queued(waiting, behind[reader]) for reader in _possible_readers(waiting)):
                explained.append((image, waiting, Standing.QUEUED))
            else:
                noted = await self._attempts.of(image.image_id, image.generation) if image.image_id in run.tried else {}
                await self._resend_one(run, image, waiting, noted.get(waiting.agent, Attempt()))
        for image, waiting, standing in explained:  # last, so that a report shows the unexplained ones first
            self._note(run, image, waiting, standing)

    def _is_queued(self, waiting: Waiting, oldest: float | None) -> bool:
        """Return whether the agent's backlog may still contain the event."""
        if waiting.reason is Reason.OBJECT_MISSING or oldest is None:
            return False
        return oldest <= waiting.since + min(PRODUCED_WITHIN_S, self._settings.overdue_s)

    async def _resend_one(self, run: _Pass, image: Found, waiting: Waiting, attempt: Attempt) -> None:
        recent = attempt.count > 0 and run.now - attempt.at < self._settings.again_s
        if attempt.count >= self._settings.tries and not recent:
            self._note(run, image, waiting, Standing.STUCK, tries=attempt.count)
        elif recent or run.sent.total() >= self._settings.max_per_pass:
            self._note(run, image, waiting, Standing.OVERDUE, tries=attempt.count)
        else:
            fresh = await self._inventory.examine(image.image_id)
            if waiting.agent not in {one.agent for one in (*fresh.waiting, *_repairs(fresh))}:
                return  # it has progressed since it was found
            event = event_to_resend(waiting, fresh.record, fresh.receipt, fresh.erasure)
            if event is None or waiting.agent not in AGENTS:  # a profile of another service may name any stage
                self._note(run, fresh, waiting, Standing.STUCK, tries=attempt.count)
                return
            await self._send(run, fresh, waiting, event)
            self._note(run, fresh, waiting, Standing.OVERDUE, tries=attempt.count, sent=True)

    async def _send(self, run: _Pass, image: Found, waiting: Waiting, event: Event) -> None:
        run.sent[waiting.agent] += 1
        if run.dry_run:
            return
        await self._deliverer.deliver([_retry(event, waiting.agent)])
        await self._attempts.note(image.image_id, image.generation, waiting.agent, run.now)
        metrics.SENT_AGAIN.labels(waiting.agent).inc()
        log.warning("event resent", image=image.image_id, stage=waiting.agent, reason=waiting.reason.value)

    def _note(
        self, run: _Pass, image: Found, waiting: Waiting, standing: Standing, *, tries: int = 0, sent: bool = False
    ) -> None:
        run.unfinished[waiting.agent][standing] += 1
        run.noted += 1
        if run.noted > SHOWN:
            return
        run.items.append(
            OverdueItem(
                image_id=image.image_id,
                generation=image.generation,
                stage=waiting.agent,
                reason=waiting.reason.value,
                standing=standing,
                age_s=round(max(0.0, run.now - waiting.since), 1),
                tries=tries,
                sent=sent,
            )
        )

    async def _report(self, run: _Pass, took_s: float, *, everything: bool) -> ReconcileReport:
        oldest = None
        if run.oldest is not None:
            at, image = run.oldest
            age_s = round(max(0.0, run.now - at), 1)
            oldest = OldestUnfinished(image_id=image.image_id, stage=image.waiting[0].agent, age_s=age_s)
        return ReconcileReport(
            dry_run=run.dry_run,
            at=now(),
            took_s=round(took_s, 3),
            complete=everything,
            images=await self._read_model.count(),
            unfinished={stage: dict(found) for stage, found in sorted(run.unfinished.items())},
            oldest=oldest,
            overdue=tuple(run.items),
            overdue_count=run.noted,
            sent=dict(run.sent),
            missing_objects=tuple(run.missing[:SHOWN]),
            missing_count=len(run.missing),
        )


def _repairs(image: Found) -> list[Waiting]:
    """Return the agent that makes a missing object; of several the first, as the others read the sanitizer's master."""
    return [Waiting(stage, Reason.OBJECT_MISSING, image.accepted_at) for stage, _ in image.missing[:1]]


def _possible_readers(waiting: Waiting) -> tuple[str, ...]:
    """Return the agents whose topics may still contain the event."""
    return (SCHEDULER, waiting.agent) if waiting.bulk else (waiting.agent,)


def _retry(event: Event, agent: str) -> Outgoing:
    return Outgoing(retry_topic(agent), event.key(), event.body(), event.headers(source=SOURCE))


def _expose(report: ReconcileReport) -> None:
    for stage in AGENTS:
        for standing in Standing:
            metrics.UNFINISHED.labels(stage, standing.value).set(report.unfinished.get(stage, {}).get(standing, 0))
    metrics.OLDEST_UNFINISHED.set(report.oldest.age_s if report.oldest is not None else 0.0)
    metrics.RECONCILED_AT.set(time.time())
