"""Numbered revisions of an image's annotations. Numbers are reserved in the object store, which orders concurrent
changes even before the read model has recorded them.

The newest revision stays among the image's objects and is deleted with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from schemas.events.facts import ImageAnnotated
from streams.object_store.keys import image_key, image_prefix
from streams.object_store.protocol import FileStore, ObjectMissing

_FOLDER = "revisions/"
_LIMIT = 1 << 20  # bytes, far above the size of any revision


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revisions of all images. Methods raise DependencyUnavailable."""

    files: FileStore

    async def newest(self, image_id: str) -> ImageAnnotated | None:
        """Return the newest reserved revision, None without one."""
        keys = await self._keys(image_id)
        return await self._read(keys[max(keys)]) if keys else None

    async def reserve(self, annotation: ImageAnnotated) -> bool:
        """Reserve the number of a revision; return False if this or a higher number is taken."""
        body = annotation.body()
        key = _key(annotation)
        if not await self.files.create(key, body, content_type="application/json"):
            known = await self._read(key)
            if known is None or known.body() != body:  # equal: an earlier attempt of this call
                return False
        if max(await self._keys(annotation.image_id), default=0) > annotation.revision:
            # The number was free only because lower revisions are removed.
            await self.files.delete(key)
            return False
        return True

    async def release(self, annotation: ImageAnnotated) -> None:
        """Release the number of an unpublished revision, if it is this revision's."""
        known = await self._read(_key(annotation))
        if known is not None and known.body() == annotation.body():
            await self.files.delete(_key(annotation))

    async def remove_older(self, annotation: ImageAnnotated) -> None:
        """Remove lower revisions."""
        for revision, key in (await self._keys(annotation.image_id)).items():
            if revision < annotation.revision:
                await self.files.delete(key)

    async def _keys(self, image_id: str) -> dict[int, str]:
        found = {}
        async for info in self.files.list(image_prefix(image_id)):
            folder, _, name = info.key.removeprefix(image_prefix(image_id)).partition("/")
            number = name.removeprefix(_FOLDER).removesuffix(".json")
            if folder.isdigit() and name.startswith(_FOLDER) and number.isdigit():
                found[int(number)] = info.key
        return found

    async def _read(self, key: str) -> ImageAnnotated | None:
        try:
            return ImageAnnotated.model_validate_json(await self.files.get(key, limit=_LIMIT))
        except (ObjectMissing, ValidationError):  # released concurrently, or not a revision
            return None


def _key(annotation: ImageAnnotated) -> str:
    return image_key(annotation.image_id, annotation.generation, f"{_FOLDER}{annotation.revision:08d}.json")
