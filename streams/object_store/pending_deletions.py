"""Marks of pending deletions, by which listings and searches hide images: `deletions/{owner}/{image id}.{generation}`.

The gateway writes a mark before it sends the deletion; the janitor removes it some time after the read model has the
tombstone. Receipts say the same, but only one image at a time; the marks of all images of a page are one listing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from schemas.values import job_id_of, split_job_id
from streams.object_store.protocol import FileStore

DELETIONS = "deletions/"
KEPT_S = 120.0  # between the tombstone in the read model and the mark's removal: requests read records, then marks
RUN = 500  # marks read at a time: what one call of either store lists


def mark_key(owner: str, image_id: str, generation: int) -> str:
    """Return the key of the mark of a deletion."""
    return f"{DELETIONS}{owner}/{job_id_of(image_id, generation)}"


def deletion_of(key: str) -> tuple[str, str, int]:
    """Return owner, image id and generation in the key of a mark. Raises ValueError for another key."""
    owner, _, job_id = key.removeprefix(DELETIONS).partition("/")
    image_id, generation = split_job_id(job_id)
    return owner, image_id, generation


@dataclass(frozen=True, slots=True)
class PendingDeletions:
    """The marks of all owners. Calls raise DependencyUnavailable."""

    files: FileStore

    async def add(self, owner: str, image_id: str, generation: int) -> None:
        """Mark generations up to this one as deleted. Idempotent."""
        await self.files.put(mark_key(owner, image_id, generation), b"{}", content_type="application/json")

    async def remove(self, owner: str, image_id: str, generation: int) -> None:
        """Remove a mark; a missing one is not an error."""
        await self.files.delete(mark_key(owner, image_id, generation))

    async def of(self, images: Iterable[tuple[str, str]]) -> dict[str, int]:
        """Return the newest generation that is being deleted of each of these (owner, image id) that has a mark.

        One listing between the first and the last of the images, and one more for each RUN of marks among them; at
        most one per image, since marks of no image asked for are skipped.
        """
        asked = {_stem(mark_key(owner, image_id, 0)) for owner, image_id in images}
        wanted, found, after = sorted(asked), dict[str, int](), ""
        prefix = _common_start(wanted[0], wanted[-1]) if wanted else ""
        while wanted:
            keys = await self._run(prefix, max(after, wanted[0]))
            for key in keys:
                if _stem(key) in asked:
                    _, image_id, generation = deletion_of(key)
                    found[image_id] = max(found.get(image_id, 0), generation)
            if len(keys) < RUN:
                break
            after = keys[-1]
            wanted = wanted[bisect_left(wanted, _stem(after)) :]
        return found

    async def _run(self, prefix: str, after: str) -> list[str]:
        keys: list[str] = []
        async for info in self.files.list(prefix, after=after):
            keys.append(info.key)
            if len(keys) == RUN:
                break
        return keys


def _common_start(first: str, last: str) -> str:
    """Return what two strings, and all that sort between them, begin with."""
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(char for char, _ in shared)


def _stem(key: str) -> str:
    """Return the key of a mark without its generation."""
    return key[: key.rfind(".") + 1]
