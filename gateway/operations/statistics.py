"""Statistics: images by state, rates, stages, storage and queues.

Callers get the statistics of their own images, with the scope `admin` those of all owners. Expensive counts are made
periodically in the background and carry their time (`as_of`); a count that is not ready is omitted.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime

from gateway.access.dependencies import Who
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.problems import Problem, documented
from gateway.operations.failures import AllOwners, owner_filter
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
    """The statistics endpoint."""

    settings: GatewaySettings
    read_model: ReadModel
    numbers: StatisticsCache | None  # None: this process collects none

    def routes(self) -> Routes:
        """Return the route."""
        routes = Routes(tags=["operation"])
        routes.add_api_route(
            PATH,
            self.statistics,
            dependencies=[requires(Scope.READ)],
            summary="Get statistics of images, stages, storage and queues",
            response_model_exclude_none=True,
            responses=documented(ProblemCode.INVALID_FIELD, ProblemCode.DEPENDENCY_UNAVAILABLE),
        )
        return routes

    async def statistics(self, identity: Who, everybody: AllOwners = None) -> Statistics:
        """Return statistics of the caller's images; with the scope `admin` of all images, with storage and queues."""
        owner = owner_filter(identity, everybody)
        if self.numbers is None:
            raise Problem(
                ProblemCode.DEPENDENCY_UNAVAILABLE,
                "This process collects no statistics.",
                headers={"Retry-After": str(self.settings.retry_after_s)},
            )
        wait_s = self.numbers.settings.wait_s
        images, oldest, rates, records, objects, queues = await asyncio.gather(
            bounded(self.read_model.count(owner), self.settings.query_timeout_s),
            bounded(
                self.read_model.page(owner, _UNFINISHED, limit=1, oldest_first=True, keys=("submitted_at",)),
                self.settings.query_timeout_s,
            ),
            self.numbers.rates(owner),
            self.numbers.records.get(wait_s),
            self.numbers.objects.get(wait_s) if owner is None else _none(),
            self.numbers.queues.get(wait_s) if owner is None else _none(),
        )
        return Statistics(
            of="everybody" if owner is None else "owner",
            images=images,
            oldest_unfinished=_oldest(oldest[0]) if oldest else None,
            rates=rates,
            stages=_stages(records, owner),
            storage=_storage_of_all(objects) if owner is None else _storage_of_owner(records, owner),
            queues={name: QueueView(waiting=count) for name, count in queues.items()} if queues is not None else None,
        )


async def _none() -> None:
    return None


def _oldest(record: ImageRecord) -> OldestWaiting:
    try:
        since = datetime.fromisoformat(record.submitted_at or "").timestamp()
    except ValueError:  # written by another service in an unknown format
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


def _storage_of_all(objects: Objects | None) -> StorageCounts | None:
    if objects is None:
        return None
    kinds = {kind: Held(objects=count, bytes=size) for kind, (count, size) in objects.kinds.items()}
    return StorageCounts(kinds=kinds, complete=objects.complete, as_of=objects.as_of)


def _storage_of_owner(records: Records | None, owner: str) -> StorageCounts | None:
    if records is None:
        return None
    totals = records.of(owner)
    kinds = {kind: Held(objects=count, bytes=totals.bytes[kind]) for kind, count in sorted(totals.objects.items())}
    return StorageCounts(kinds=kinds, complete=records.complete, as_of=records.as_of)
