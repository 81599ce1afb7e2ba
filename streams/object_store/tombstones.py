"""Tombstones of deleted images in the object store, also for the agents, which have no read model.

`erasures/{image id}.json` is the tombstone and the receipt of a deletion. It is never removed, so that a dead letter
replayed much later finds it. The gateway writes it before the deletion is in the log; it is *certain* once the indexer
has read the deletion from there. Events are dropped only then: a deletion that Kafka did not accept is cancelled, and
must have dropped none.

`erasing/{image id}/` exists until the erasure is finished: a mark, and a note for each sha256 under which results or
an original may still be written late.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from schemas.events.envelope import now
from schemas.stored.erasures import Erasure, Removed
from streams.errors import DependencyUnavailable
from streams.object_store.keys import image_prefix
from streams.object_store.protocol import FileStore, ObjectMissing, delete_prefix
from streams.topics import longest_stay

_OPEN = "open"
_JSON = "application/json"


def erasure_key(image_id: str) -> str:
    """Return the key of an image's erasure."""
    return f"erasures/{image_id}.json"


def _folder(image_id: str) -> str:
    return f"erasing/{image_id}/"


def _leaves_log_by() -> str:
    return (datetime.now(UTC) + longest_stay()).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Tombstones:
    """The erasures of all images. Calls raise DependencyUnavailable."""

    files: FileStore

    async def get(self, image_id: str) -> Erasure | None:
        """Return the erasure of an image, None without one. Raises DependencyUnavailable if it is unreadable."""
        try:
            return Erasure.model_validate_json(await self.files.get(erasure_key(image_id)))
        except ObjectMissing:
            return None
        except ValidationError as error:
            raise DependencyUnavailable(
                f"{erasure_key(image_id)} is unreadable: {error.error_count()} errors"
            ) from error

    async def request(self, image_id: str, owner: str, generation: int) -> bool:
        """Write the tombstone of a requested deletion; return whether it is new.

        No change if one exists with this or a higher generation, or for another owner.
        """
        known = await self.get(image_id)
        if known is not None and (known.owner != owner or known.generation >= generation):
            return False
        await self.update(_requested(image_id, owner, generation))
        return True

    async def cancel(self, image_id: str, generation: int) -> None:
        """Remove the tombstone of a deletion that was not accepted, unless it is certain by now."""
        known = await self.get(image_id)
        if known is not None and known.generation == generation and known.certain_at is None:
            await self.files.delete(erasure_key(image_id))
            await delete_prefix(self.files, _folder(image_id))

    async def make_certain(self, image_id: str, owner: str, generation: int) -> Erasure | None:
        """Mark a deletion as being in the log: from now on the image's events are dropped. None for another owner."""
        known = await self.get(image_id)
        if known is not None and known.owner != owner:
            return None
        if known is None or known.generation < generation:
            known = _requested(image_id, owner, generation)
        if known.certain_at is None:
            known = await self.update(known, certain_at=now(), leaves_log_by=_leaves_log_by())
        return known

    async def update(self, erasure: Erasure, **changes: object) -> Erasure:
        """Store an erasure with changes; return it."""
        updated = erasure.model_copy(update=changes)
        # The mark first: an erasure without a mark would never be finished; a mark without an erasure is found.
        await self._put(_folder(erasure.image_id) + _OPEN, b"{}")
        await self._put(erasure_key(erasure.image_id), updated.model_dump_json().encode())
        return updated

    async def finish(self, erasure: Erasure, removed: Removed, seen: Iterable[str] = ()) -> Erasure:
        """Mark an erasure as finished, since no late write is possible, and remove the notes of the hashes in `seen`.

        A hash noted meanwhile keeps the erasure unfinished.
        """
        finished = await self.update(erasure, finished_at=now(), removed=removed)
        for name in (*seen, _OPEN):
            await self.files.delete(_folder(erasure.image_id) + name)
        return finished

    async def note(self, image_id: str, hashes: Iterable[str]) -> None:
        """Note hashes whose results and originals must be checked until the erasure is finished."""
        for sha256 in sorted(hashes):
            await self._put(_folder(image_id) + sha256, b"{}")

    async def noted_hashes(self, image_id: str) -> set[str]:
        """Return the noted hashes."""
        folder = _folder(image_id)
        names = {found.key.removeprefix(folder) async for found in self.files.list(folder)}
        return names - {_OPEN}

    async def unfinished(self) -> AsyncIterator[str]:
        """Iterate over the images whose erasure is not finished."""
        last = ""
        async for found in self.files.list("erasing/"):
            image_id = found.key.split("/")[1]
            if image_id != last:
                yield image_id
            last = image_id

    async def remove_marks(self, image_id: str, *, before: float) -> None:
        """Remove marks modified before that time (unix seconds), left by incompletely written requests."""
        async for found in self.files.list(_folder(image_id)):
            if found.modified < before:
                await self.files.delete(found.key)

    async def _put(self, key: str, body: bytes) -> None:
        await self.files.put(key, body, content_type=_JSON)


async def objects_of(files: FileStore, image_id: str, generation: int) -> AsyncIterator[str]:
    """Iterate over the keys of an image's objects, up to a generation."""
    prefix = image_prefix(image_id)
    async for found in files.list(prefix):
        segment = found.key.removeprefix(prefix).partition("/")[0]
        if segment.isascii() and segment.isdigit() and int(segment) <= generation:
            yield found.key


def _requested(image_id: str, owner: str, generation: int) -> Erasure:
    return Erasure(
        image_id=image_id, owner=owner, generation=generation, requested_at=now(), leaves_log_by=_leaves_log_by()
    )
