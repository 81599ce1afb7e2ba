"""Tombstones: what everybody can see of a deleted image, also the agents, which have no read model.

`erasures/{image id}.json` is the tombstone and the receipt of a deletion, and stays: a dead letter replayed much later
finds it. The gateway writes it before the deletion is in the log; it is *certain* when the indexer has read it from
there. Only then is work dropped for it: a deletion Kafka did not take is taken back, and must have stopped nothing.

`erasing/{image id}/` is there until the erasure is finished: a mark, and a note of each sha256 under which results or
an original could still be written late.
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
    """Return where the erasure of an image is kept."""
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
        """Return the erasure of an image, None if nobody asked for it. One that cannot be read counts as away."""
        try:
            return Erasure.model_validate_json(await self.files.get(erasure_key(image_id)))
        except ObjectMissing:
            return None
        except ValidationError as error:
            raise DependencyUnavailable(
                f"{erasure_key(image_id)} cannot be read: {error.error_count()} errors"
            ) from error

    async def request(self, image_id: str, owner: str, generation: int) -> bool:
        """Note that a deletion is asked for; say whether that is news.

        Nothing happens if it was noted with this generation or a higher one, or for another owner.
        """
        known = await self.get(image_id)
        if known is not None and (known.owner != owner or known.generation >= generation):
            return False
        await self.say(_asked(image_id, owner, generation))
        return True

    async def take_back(self, image_id: str, generation: int) -> None:
        """Forget a deletion that was not accepted. One that is certain by now stays."""
        known = await self.get(image_id)
        if known is not None and known.generation == generation and known.certain_at is None:
            await self.files.delete(erasure_key(image_id))
            await delete_prefix(self.files, _folder(image_id))

    async def make_certain(self, image_id: str, owner: str, generation: int) -> Erasure | None:
        """Note that a deletion is in the log: from here on work on the image is dropped. None if it is another's."""
        known = await self.get(image_id)
        if known is not None and known.owner != owner:
            return None
        if known is None or known.generation < generation:
            known = _asked(image_id, owner, generation)
        if known.certain_at is None:
            known = await self.say(known, certain_at=now(), leaves_log_by=_leaves_log_by())
        return known

    async def say(self, erasure: Erasure, **changes: object) -> Erasure:
        """Write down how far an erasure is; return it so."""
        said = erasure.model_copy(update=changes)
        # The mark first: an erasure nobody looks after would never be finished, a mark without one is found.
        await self._put(_folder(erasure.image_id) + _OPEN, b"{}")
        await self._put(erasure_key(erasure.image_id), said.model_dump_json().encode())
        return said

    async def finish(self, erasure: Erasure, removed: Removed, seen: Iterable[str] = ()) -> Erasure:
        """Note that nothing can come late any more, and forget the hashes that were seen to.

        One noted in the meantime stays, and the erasure is looked after once more.
        """
        finished = await self.say(erasure, finished_at=now(), removed=removed)
        for name in (*seen, _OPEN):
            await self.files.delete(_folder(erasure.image_id) + name)
        return finished

    async def note(self, image_id: str, hashes: Iterable[str]) -> None:
        """Have these hashes looked after until the erasure is finished."""
        for sha256 in sorted(hashes):
            await self._put(_folder(image_id) + sha256, b"{}")

    async def noted(self, image_id: str) -> set[str]:
        """Return the hashes that are looked after."""
        folder = _folder(image_id)
        names = {found.key.removeprefix(folder) async for found in self.files.list(folder)}
        return names - {_OPEN}

    async def unfinished(self) -> AsyncIterator[str]:
        """Walk the images whose erasure is not finished."""
        last = ""
        async for found in self.files.list("erasing/"):
            image_id = found.key.split("/")[1]
            if image_id != last:
                yield image_id
            last = image_id

    async def forget_marks(self, image_id: str, *, before: float) -> None:
        """Remove marks older than that (unix seconds): a request that was never written whole left them."""
        async for found in self.files.list(_folder(image_id)):
            if found.modified < before:
                await self.files.delete(found.key)

    async def _put(self, key: str, body: bytes) -> None:
        await self.files.put(key, body, content_type=_JSON)


async def objects_of(files: FileStore, image_id: str, generation: int) -> AsyncIterator[str]:
    """Walk the keys of an image's objects, up to a generation."""
    prefix = image_prefix(image_id)
    async for found in files.list(prefix):
        of = found.key.removeprefix(prefix).partition("/")[0]
        if of.isascii() and of.isdigit() and int(of) <= generation:
            yield found.key


def _asked(image_id: str, owner: str, generation: int) -> Erasure:
    return Erasure(
        image_id=image_id, owner=owner, generation=generation, requested_at=now(), leaves_log_by=_leaves_log_by()
    )
