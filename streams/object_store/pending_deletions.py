"""Marks of pending deletions, by which listings and searches hide images: `deletions/{owner}/{image id}`.

The gateway writes a mark before it sends the deletion; the janitor removes it some time after the read model has the
tombstone. Receipts say the same, but only one image at a time; the marks of all images of a page are one listing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from pydantic import Field, ValidationError

from schemas.values import ID_PATTERN, Value
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore, ObjectMissing

DELETIONS = "deletions/"
KEPT_S = 120.0  # between the tombstone in the read model and the mark's removal: requests read records, then marks
RUN = 500  # marks listed for a page at most: what one call of either store lists
_PARALLEL = 16  # concurrent reads
_ID = re.compile(ID_PATTERN)


class _Mark(Value):
    """The content of a mark."""

    generation: int = Field(ge=1, description="of the deletion: it hides this generation and all lower ones")


def mark_key(owner: str, image_id: str) -> str:
    """Return the key of the mark of an image's deletion."""
    return f"{DELETIONS}{owner}/{image_id}"


def marked_image(key: str) -> tuple[str, str]:
    """Return owner and image id in the key of a mark. Raises ValueError for another key."""
    owner, _, image_id = key.removeprefix(DELETIONS).partition("/")
    if not _ID.fullmatch(image_id):
        raise ValueError(f"not the key of a pending deletion: {key[:80]!r}")
    return owner, image_id


@dataclass(frozen=True, slots=True)
class PendingDeletions:
    """The marks of all owners. Calls raise DependencyUnavailable."""

    files: FileStore

    async def add(self, owner: str, image_id: str, generation: int) -> None:
        """Mark generations up to this one as deleted. Idempotent."""
        body = _Mark(generation=generation).model_dump_json().encode()
        await self.files.put(mark_key(owner, image_id), body, content_type="application/json")

    async def remove(self, owner: str, image_id: str) -> None:
        """Remove a mark; a missing one is not an error."""
        await self.files.delete(mark_key(owner, image_id))

    async def generation(self, owner: str, image_id: str) -> int:
        """Return the generation that is being deleted, 0 without a mark."""
        return await self._generation(mark_key(owner, image_id))

    async def hidden(self, images: Iterable[tuple[str, str, int]]) -> set[str]:
        """Return the ids of those images (owner, image id, generation) that are being deleted.

        One listing; with more than RUN marks between the first and the last image another call for the images beyond
        them. Marks are read only of images that have had a rerun: others have no generation beyond a deletion.
        """
        by_key = {mark_key(owner, image_id): (image_id, generation) for owner, image_id, generation in images}
        marked = await self._marked(sorted(by_key))
        gate = asyncio.Semaphore(_PARALLEL)

        async def hides(key: str) -> bool:
            if by_key[key][1] == 1:
                return True
            async with gate:
                return await self._generation(key) >= by_key[key][1]

        answers = await asyncio.gather(*map(hides, marked))
        return {by_key[key][0] for key, answer in zip(marked, answers, strict=True) if answer}

    async def _marked(self, keys: Sequence[str]) -> list[str]:
        """Return those of the sorted keys that exist."""
        if not keys:
            return []
        listed: list[str] = []
        async for info in self.files.list(_common_start(keys[0], keys[-1]), after=keys[0][:-1]):
            listed.append(info.key)
            if len(listed) == RUN:
                break
        found = set(listed)
        if len(listed) == RUN and (beyond := [key for key in keys if key > listed[-1]]):
            found |= await self.files.existing(beyond)
        return [key for key in keys if key in found]

    async def _generation(self, key: str) -> int:
        try:
            return _Mark.model_validate_json(await self.files.get(key)).generation
        except ObjectMissing:
            return 0
        except ValidationError as error:
            raise DependencyUnavailable(f"{key} is unreadable: {error.error_count()} errors") from error


def _common_start(first: str, last: str) -> str:
    """Return what two strings, and all that sort between them, begin with."""
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(char for char, _ in shared)
