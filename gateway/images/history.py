"""History of an image: the events the indexer recorded, merged with the receipts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.access.dependencies import Caller
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.problems import documented
from gateway.images.lookup import Lookup
from gateway.settings import GatewaySettings
from schemas.http.history import HistoryItem, HistoryKind, ImageHistory
from schemas.http.problems import ProblemCode
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ImageState, job_id_of
from streams.concurrency.timeouts import bounded
from streams.object_store.protocol import FileStore
from streams.object_store.receipts import generation_of, job_of, read_receipt, receipt_keys
from streams.read_model.protocol import ReadModel
from streams.read_model.records import HISTORY_LIMIT, HistoryEntry, ImageRecord

_RECEIPTS = 50  # newest receipts read per image


@dataclass(frozen=True, slots=True)
class History:
    """The history endpoint."""

    settings: GatewaySettings
    files: FileStore
    read_model: ReadModel
    lookup: Lookup

    def routes(self) -> Routes:
        """Return the route."""
        routes = Routes("/api/v1/images", tags=["query"])
        routes.add_api_route(
            "/{image_id}/history",
            self.history,
            dependencies=[requires(Scope.READ)],
            summary="Get the history of an image",
            response_model_exclude_none=True,
            responses=documented(ProblemCode.NOT_FOUND, ProblemCode.GONE, ProblemCode.DEPENDENCY_UNAVAILABLE),
        )
        return routes

    async def history(self, image_id: str, owner: Caller) -> ImageHistory:
        """Return every event with time, worker, attempts, duration and trace. Available from the 202 on."""
        record = await self.lookup.accepted(image_id, owner)
        entries = await bounded(self.read_model.history(image_id), self.settings.query_timeout_s)
        receipts = await bounded(self._receipts(image_id), self.settings.storage_timeout_s)
        items = [*_accepted(record, receipts), *(_item(image_id, entry) for entry in entries.values())]
        items += [*_reruns(image_id, entries.values()), *_ended(record)]
        return ImageHistory(
            image_id=image_id,
            items=tuple(sorted(items, key=lambda item: (item.at, _ORDER[item.kind], item.event_id or ""))),
            cut=len(entries) >= HISTORY_LIMIT,
        )

    async def _receipts(self, image_id: str) -> list[Receipt]:
        keys = sorted([key async for key in receipt_keys(self.files, image_id)], key=generation_of)
        first_and_newest = dict.fromkeys([*keys[:1], *keys[-_RECEIPTS:]])
        found = [await read_receipt(self.files, job_of(key)) for key in first_and_newest]
        return [receipt for receipt in found if receipt is not None]


# Causal order of items with the same millisecond.
_ORDER = {kind: at for at, kind in enumerate(HistoryKind)} | {HistoryKind.RERUN: 0}
_KINDS = {
    ReceiptKind.UPLOAD: (HistoryKind.ACCEPTED, "upload"),
    ReceiptKind.FETCH: (HistoryKind.ACCEPTED, "fetch"),
    ReceiptKind.REPROCESS: (HistoryKind.RERUN, None),
}


def _accepted(record: ImageRecord, receipts: Iterable[Receipt]) -> Iterator[HistoryItem]:
    """Yield the accepted requests; for an image from another service, the time its event declares."""
    accepted = False
    for receipt in receipts:
        kind, via = _KINDS.get(receipt.kind, (None, None))
        if kind is None or receipt.owner != record.owner:
            continue
        accepted = accepted or kind is HistoryKind.ACCEPTED
        yield HistoryItem(at=receipt.submitted_at, kind=kind, via=via, lane=receipt.lane, job_id=receipt.job_id)
    if not accepted and record.submitted_at is not None:
        job_id = job_id_of(record.image_id, 1)
        yield HistoryItem(at=record.submitted_at, kind=HistoryKind.ACCEPTED, via="event", job_id=job_id)


def _reruns(image_id: str, entries: Iterable[HistoryEntry]) -> Iterator[HistoryItem]:
    """Yield the requested reruns of single stages; the run number is the time of the request in ms."""
    for run, stage, generation in sorted(
        {(entry.run, entry.stage, entry.generation) for entry in entries if entry.run}
    ):
        at = datetime.fromtimestamp(run / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        yield HistoryItem(at=at, kind=HistoryKind.RERUN, stage=stage, run=run, job_id=job_id_of(image_id, generation))


def _ended(record: ImageRecord) -> Iterator[HistoryItem]:
    if record.finished_at is not None and record.state is not ImageState.PROCESSING:
        yield HistoryItem.model_validate(
            {
                "at": record.finished_at,
                "kind": HistoryKind.ENDED,
                "state": record.state,
                "reason": record.error_code,
                "job_id": job_id_of(record.image_id, record.generation),
            }
        )


def _item(image_id: str, entry: HistoryEntry) -> HistoryItem:
    staged = entry.state is not None
    place = (entry.topic, entry.partition, entry.offset)
    return HistoryItem.model_validate(
        {
            **entry.model_dump(include=_SAME, exclude_none=True),
            "at": entry.occurred_at,
            "kind": HistoryKind.STAGE if staged else HistoryKind.ANNOTATED,
            "job_id": job_id_of(image_id, entry.generation),
            "event": entry.type,
            "stage": entry.stage if staged else None,
            "reused": entry.reused or None,
            "run": entry.run or None,
            "position": None if None in place else "/".join(map(str, place)),
        }
    )


_SAME = {
    "recorded_at", "event_id", "state", "reason", "attempts", "duration_ms", "version", "worker", "trace_id",
}  # fmt: skip
