"""Stored results with their lineage, reused for equal inputs; each image gets its own copies of a result's objects."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from pydantic import JsonValue, ValidationError

from schemas.events.envelope import Event
from schemas.stored.results import StageResult
from schemas.values import Lineage, ObjectRef, Value
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore, ObjectMissing

R = TypeVar("R", bound=StageResult)

log = structlog.get_logger(__name__)


class StoredResult(Value):
    """The stored form of a result."""

    result: JsonValue
    lineage: Lineage


@dataclass(frozen=True, slots=True)
class Found(Generic[R]):
    """A stored result."""

    value: R
    lineage: Lineage
    ref: ObjectRef


@dataclass(frozen=True, slots=True)
class ResultStore:
    """Results in the object store, keyed by everything they depend on."""

    files: FileStore

    async def find(self, key: str, kind: type[R], event: Event) -> Found[R] | None:
        """Return the stored result with its objects copied to the event's image; None if it must be computed.

        A result of another image with equal bytes, or of another run, is adopted by copying its objects inside the
        store. If one of them is missing, because that image was deleted for example, the result counts as absent.
        """
        try:
            raw = await self.files.get(key)
        except ObjectMissing:
            return None
        try:
            stored = StoredResult.model_validate_json(raw)
            value = kind.model_validate(stored.result)
        except ValidationError as error:
            log.warning("stored result unreadable; computing it again", key=key, error=str(error)[:300])
            return None
        adopted = await self._adopt(value, event)
        if adopted is None:
            return None
        if event.run and adopted != value:
            # The previous run's objects will be removed; the stored result must not refer to them.
            return Found(adopted, stored.lineage, await self.save(key, adopted, stored.lineage))
        return Found(adopted, stored.lineage, self._ref(key, raw))

    async def save(self, key: str, value: StageResult, lineage: Lineage) -> ObjectRef:
        """Store a result. Idempotent."""
        stored = StoredResult(result=value.model_dump(mode="json", exclude_none=True), lineage=lineage)
        return await self.files.put(key, stored.model_dump_json().encode(), content_type="application/json")

    def _ref(self, key: str, raw: bytes) -> ObjectRef:
        return ObjectRef(
            bucket=self.files.bucket,
            key=key,
            sha256=hashlib.sha256(raw).hexdigest(),
            size=len(raw),
            content_type="application/json",
        )

    async def _adopt(self, value: R, event: Event) -> R | None:
        own: dict[str, ObjectRef] = {}
        for name, ref in value.objects().items():
            target = image_key(event.image_id, event.generation, name, run=event.run)
            if not await self._matches(target, ref):
                # Another version of the stage may since have written other bytes under the same name.
                if ref.key == target or not await self._matches(ref.key, ref):
                    return None
                try:
                    await self.files.copy(ref.key, target)
                except ObjectMissing:
                    return None
            own[name] = ref.model_copy(update={"key": target})
        return value.with_objects(own) if own else value

    async def _matches(self, key: str, ref: ObjectRef) -> bool:
        """Return whether the object under a key has the size and hash of `ref`."""
        known = await self.files.stat(key)
        return known is not None and known.size == ref.size and known.sha256 in (None, ref.sha256)
