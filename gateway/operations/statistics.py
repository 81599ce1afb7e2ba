"""Statistics: how many images there are, how fast they come and end, what waits, and what all of it takes.

Numbers of everybody are for the scope `admin`; everybody else is told their own. What costs much to count is counted
in the background, from time to time, and says when; what cannot be counted in time is left out, and nothing fails.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime

from fastapi import APIRouter

from gateway.access.dependencies import Who
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.http.problems import Problem, documented
from gateway.operations.failures import AnonymousAuthenticator, whose
from gateway.operations.inventory_counts import Objects, Records
from gateway.operations.statistics_cache import StatisticsCache
from gateway.settings import GatewaySettings
from schemas.http.operations import Held, OldestWaiting, QueueView, StageCounts, Statistics, StorageCounts
from schemas.http.problems import ProblemCode
from schemas.values import ImageState, made_at
from streams.concurrency.timeouts import bounded
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Filters, ImageRecord

PATH = "/api/v1/health/stats"
_UNFINISHED = Filters(state=ImageState.PROCESSING)


@dataclass(frozen=True, slots=True)
class HealthStatistics:
    """The endpoint that tells the numbers."""

    settings: GatewaySettings
    read_model: ReadModel
    numbers: StatisticsCache | None  # None: this process cannot

    def routes(self) -> APIRouter:
        """Return the route."""
        router = APIRouter(tags=["operation"])
        router.add_api_route(
            PATH,
            self.statistics,
            dependencies=[requires(Scope.READ)],
            summary="How much there is, and how fast it goes",
            response_model_exclude_none=True,
            responses=documented(ProblemCode.INVALID_FIELD, ProblemCode.DEPENDENCY_UNAVAILABLE),
        )
        return router

    async def statistics(self, identity: Who, everybody: AnonymousAuthenticator = None) -> Statistics:
        """Of the caller's images; with the scope `admin`, of everybody's, with storage and queues."""
        owner = whose(identity, everybody)
        if self.numbers is None:
            raise Problem(
                ProblemCode.DEPENDENCY_UNAVAILABLE,
                "This process does not count.",
                headers={"Retry-After": str(self.settings.retry_after_s)},
            )
        wait_s = self.numbers.settings.wait_s
        images, oldest, rates, records, objects, queues = await asyncio.gather(
            bounded(self.read_model.count(owner), self.settings.query_timeout_s),
            bounded(
                self.read_model.page(owner, _UNFINISHED, limit=1, oldest_first=True), self.settings.query_timeout_s
            ),
            self.numbers.rates(owner),
            self.numbers.records.get(wait_s),
            self.numbers.objects.get(wait_s) if owner is None else _nothing(),
            self.numbers.queues.get(wait_s) if owner is None else _nothing(),
        )
        return Statistics(
            of="everybody" if owner is None else "owner",
            images=images,
            oldest_unfinished=_oldest(oldest[0]) if oldest else None,
            rates=rates,
            stages=_stages(records, owner),
            storage=_stored(objects) if owner is None else _named(records, owner),
            queues={name: QueueView(waiting=count) for name, count in queues.items()} if queues is not None else None,
        )


async def _nothing() -> None:
    return None


def _oldest(record: ImageRecord) -> OldestWaiting:
    try:
        since = datetime.fromisoformat(record.submitted_at or "").timestamp()
    except ValueError:  # another service may have written anything
        since = made_at(record.image_id)
    age_s = max(0.0, round(time.time() - since, 1))
    return OldestWaiting(image_id=record.image_id, submitted_at=record.submitted_at, age_s=age_s)


def _stages(records: Records | None, owner: str | None) -> StageCounts | None:
    if records is None:
        return None
    totals = records.of(owner)
    counts: dict[str, dict[str, int]] = {}
    for (stage, state), count in sorted(totals.stages.items()):
        counts.setdefault(stage, {})[state] = count
    return StageCounts(counts=counts, images=totals.images, complete=records.complete, as_of=records.as_of)


def _stored(objects: Objects | None) -> StorageCounts | None:
    if objects is None:
        return None
    kinds = {kind: Held(objects=count, bytes=size) for kind, (count, size) in objects.kinds.items()}
    return StorageCounts(kinds=kinds, complete=objects.complete, as_of=objects.as_of)


def _named(records: Records | None, owner: str) -> StorageCounts | None:
    if records is None:
        return None
    totals = records.of(owner)
    kinds = {kind: Held(objects=count, bytes=totals.bytes[kind]) for kind, count in sorted(totals.objects.items())}
    return StorageCounts(kinds=kinds, complete=records.complete, as_of=records.as_of)
