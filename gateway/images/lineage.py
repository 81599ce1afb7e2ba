"""Lineage: the input, code, weights and parameters each part of an image's results was computed with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.access.dependencies import Caller
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.problems import documented
from gateway.images.lookup import Lookup
from gateway.settings import GatewaySettings
from schemas.http.history import ImageLineage, LineageItem, LineageKind, LineageState, Origin
from schemas.http.problems import ProblemCode
from schemas.values import REQUIRED_STAGES, StageState
from streams.concurrency.timeouts import bounded
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.object_store.results import StoredResult
from streams.read_model.records import ImageRecord, StageRecord

log = logging.getLogger(__name__)

_MAX_RESULT_BYTES = 32_000_000  # the largest stored text that is read
_CANDIDATES = 2  # listed when the record names no result: a single one is certain, two are ambiguous


@dataclass(frozen=True, slots=True)
class ImageLineages:
    """The endpoint for the lineage of results."""

    settings: GatewaySettings
    files: FileStore
    lookup: Lookup

    def routes(self) -> Routes:
        """Return the route."""
        routes = Routes("/api/v1/images", tags=["query"])
        routes.add_api_route(
            "/{image_id}/lineage",
            self.lineage,
            dependencies=[requires(Scope.READ)],
            summary="Get the lineage of an image's results",
            response_model_exclude_none=True,
            responses=documented(
                ProblemCode.NOT_FOUND, ProblemCode.GONE, ProblemCode.NOT_FINISHED, ProblemCode.DEPENDENCY_UNAVAILABLE
            ),
        )
        return routes

    async def lineage(self, image_id: str, owner: Caller) -> ImageLineage:
        """Return input, code, weights and parameters of each variant, text, object, vector and analysis."""
        record = await self.lookup.image(image_id, owner)
        names = [*REQUIRED_STAGES, *(name for name in record.stages if name not in REQUIRED_STAGES)]
        return ImageLineage(
            image_id=image_id,
            original_sha256=record.original.sha256 if record.original else None,
            items=tuple(_items(record)),
            origins={name: await self._origin(record, name) for name in names if name in record.stages},
        )

    async def _origin(self, record: ImageRecord, stage: str) -> Origin:
        known = record.stages[stage]
        if known.state is not StageState.DONE:
            return _without(known, LineageState.NOT_MADE, known.message)
        key = known.result.key if known.result is not None else await self._found(record, stage, known.version)
        # A producer of facts could name any object: only the owner's own results are read.
        if key is None or not key.startswith(f"results/{record.owner}/"):
            return _without(known, LineageState.MISSING, "The record does not name the stored result.")
        try:
            raw = await bounded(self.files.get(key, limit=_MAX_RESULT_BYTES), self.settings.storage_timeout_s)
            lineage = StoredResult.model_validate_json(raw).lineage
        except ObjectMissing:
            return _without(known, LineageState.MISSING, "The stored result has been removed.")
        except ValueError as error:  # above the size limit, or (ValidationError) not a result
            log.warning("stored result is invalid", extra={"key": key, "error": str(error)[:300]})
            return _without(known, LineageState.UNREADABLE, "The stored result is invalid.")
        fields = lineage.model_dump(mode="json", exclude={"stage"})
        return Origin(state=LineageState.KNOWN, stage_state=known.state, reused=known.reused, **fields)

    async def _found(self, record: ImageRecord, stage: str, version: str) -> str | None:
        """Return the only stored result there is, for records older than facts that name their result."""
        source = record.original if stage == "sanitizer" else record.master
        if source is None or stage not in REQUIRED_STAGES or not version:
            return None
        return await bounded(
            self._only(f"results/{record.owner}/{source.sha256}/{stage}/{version}/"), self.settings.storage_timeout_s
        )

    async def _only(self, prefix: str) -> str | None:
        found: list[str] = []
        async for info in self.files.list(prefix):
            found.append(info.key)
            if len(found) == _CANDIDATES:
                return None
        return found[0] if found else None


def _without(known: StageRecord, state: LineageState, detail: str | None) -> Origin:
    return Origin(
        state=state, detail=detail, stage_state=known.state, reused=known.reused, stage_version=known.version or None
    )


def _items(record: ImageRecord) -> Iterator[LineageItem]:
    if record.master is not None:
        yield LineageItem(kind=LineageKind.MASTER, name="master", stage="sanitizer", sha256=record.master.sha256)
    for page in record.pages:
        yield LineageItem(
            kind=LineageKind.MASTER, name=f"page-{page.number}", stage="sanitizer", sha256=page.object.sha256
        )
    for rendition in record.renditions:
        yield LineageItem(
            kind=LineageKind.VARIANT, name=rendition.name, stage="resizer", sha256=rendition.object.sha256
        )
    if record.text is not None:
        yield LineageItem(kind=LineageKind.TEXT, name="text", stage="ocr")
    for found in record.objects:
        yield LineageItem(kind=LineageKind.OBJECT, name=found.label, stage="detector", box=found.box)
    if record.has_vector:
        yield LineageItem(kind=LineageKind.VECTOR, name="clip", stage="embedder")
    for stage in record.analysis:
        known = record.stages.get(stage)
        yield LineageItem(kind=(known and known.lineage) or LineageKind.ANALYSIS, name=stage, stage=stage)
