"""Revisions: what owners said of an image anew, numbered. The number is taken in the object store, so that of two who
change an image at once one comes after the other, though the read model has heard of neither.

An image's newest revision stays among its objects, and goes with them when the image is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from schemas.events.facts import ImageAnnotated
from streams.object_store.keys import image_key, image_prefix
from streams.object_store.protocol import FileStore, ObjectMissing

_FOLDER = "revisions/"
_LIMIT = 1 << 20  # bytes, far more than is ever written


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revisions of all images. Calls raise DependencyUnavailable."""

    files: FileStore

    async def newest(self, image_id: str) -> ImageAnnotated | None:
        """Return the newest revision that was taken, None if none is kept."""
        keys = await self._keys(image_id)
        return await self._read(keys[max(keys)]) if keys else None

    async def take(self, said: ImageAnnotated) -> bool:
        """Take the number of a revision; False if another has it, or a higher one."""
        body = said.body()
        key = _key(said)
        if not await self.files.create(key, body, content_type="application/json"):
            known = await self._read(key)
            if known is None or known.body() != body:  # else it was an earlier try of this very call
                return False
        if max(await self._keys(said.image_id), default=0) > said.revision:
            # Ours was free because it is over: lower ones are not kept.
            await self.files.delete(key)
            return False
        return True

    async def give_back(self, said: ImageAnnotated) -> None:
        """Free the number of a revision that did not come to be, if it is its own."""
        known = await self._read(_key(said))
        if known is not None and known.body() == said.body():
            await self.files.delete(_key(said))

    async def forget_before(self, said: ImageAnnotated) -> None:
        """Remove lower revisions: nothing is built on them any more."""
        for revision, key in (await self._keys(said.image_id)).items():
            if revision < said.revision:
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
        except (ObjectMissing, ValidationError):  # given back meanwhile; or nobody's
            return None


def _key(said: ImageAnnotated) -> str:
    return image_key(said.image_id, said.generation, f"{_FOLDER}{said.revision:08d}.json")
