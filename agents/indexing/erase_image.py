"""Erases an image: removes everything the object store has of it, up to the generation that deletes it.

The tombstone is written first, so that the other agents drop work in flight; then the objects are listed and removed.
The data a repeated deletion needs (hashes, receipts) is removed last, so that an interrupted deletion can always be
completed. Objects shared with other images of the owner stay.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from schemas.events.envelope import now
from schemas.events.facts import DeletionRequested
from schemas.stored.erasures import Removed
from schemas.stored.receipts import Receipt
from schemas.values import ImageState
from streams.object_store.fetch_records import fetch_record_key
from streams.object_store.keys import original_key
from streams.object_store.original_references import has_other_references, release
from streams.object_store.protocol import FileStore
from streams.object_store.receipts import generation_of, job_of, read_receipt, receipt_keys
from streams.object_store.tombstones import Tombstones, objects_of
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Change, ImageRecord


class Done(Enum):
    """Whether a deletion was done now, or was already done when the event was redelivered."""

    NOW = "now"
    BEFORE = "before"


@dataclass(slots=True)
class Belongings:
    """The keys of the objects that only this image uses, and the hashes of its bytes."""

    objects: list[str] = field(default_factory=list)
    originals: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    receipts: list[str] = field(default_factory=list)
    hashes: set[str] = field(default_factory=set)

    def counts(self) -> Removed:
        """Return how many there are of each."""
        return Removed(
            objects=len(self.objects),
            originals=len(self.originals),
            results=len(self.results),
            receipts=len(self.receipts),
        )


async def erase(
    event: DeletionRequested, known: ImageRecord | None, read_model: ReadModel, files: FileStore
) -> Done | None:
    """Remove objects, original, results and the record, in this order; then the receipts. Idempotent.

    Returns None and removes nothing if the read model, a receipt or the tombstone names another owner.
    """
    receipts = await receipts_of(event.image_id, event.generation, files)
    if known is None and any(receipt.owner != event.owner for receipt in receipts.values() if receipt is not None):
        return None
    erasures = Tombstones(files)
    erasure = await erasures.make_certain(event.image_id, event.owner, event.generation)
    if erasure is None:
        return None
    if erasure.finished_at is not None:
        return Done.BEFORE
    await erasures.note(event.image_id, _hashes(known, receipts.values()))
    if known is not None and not known.deleted:
        # From here on the image does not count as a user of its bytes, so that the last of two concurrent deletions
        # removes them.
        going, generation = Change({"state": ImageState.DELETED.value}), known.generation
        await read_model.update(event.image_id, lambda now: going if now.generation == generation else None)
    noted = await erasures.noted_hashes(event.image_id)
    found = await belongings(event.image_id, event.owner, event.generation, noted, read_model, files)
    found.receipts = list(receipts)
    again = erasure.erased_at is not None
    removed = erasure.removed + found.counts() if again else erasure.removed.at_least(found.counts())
    erasure = await erasures.update(erasure, removed=removed)
    await remove(found, event.image_id, event.owner, files)
    await read_model.write_tombstone(event.image_id, event.owner, event.generation)
    urls = {receipt.url for receipt in receipts.values() if receipt is not None}
    for url in {known.source_url if known is not None else None, *urls} - {None}:
        await files.delete(fetch_record_key(event.owner, str(url)))
    for key in receipts:
        await files.delete(key)
    if not again:
        await erasures.update(erasure, erased_at=now())
    return Done.BEFORE if again else Done.NOW


async def belongings(
    image_id: str, owner: str, generation: int, hashes: Collection[str], read_model: ReadModel, files: FileStore
) -> Belongings:
    """Find the objects of an image up to a generation, and those of its hashes no other image of the owner uses."""
    found = Belongings(hashes=set(hashes))
    found.objects = [key async for key in objects_of(files, image_id, generation)]
    # References to originals and masters are written before any event; the read model learns of an image later.
    shared = {sha256 for sha256 in found.hashes if await has_other_references(files, owner, sha256, image_id)}
    for sha256 in sorted(found.hashes):
        if sha256 in shared or await read_model.uses_of(owner, sha256) > 0:
            continue
        # Only at the owner's own key: an event may name any object as its original.
        if await files.stat(original_key(owner, sha256)) is not None:
            found.originals.append(original_key(owner, sha256))
        found.results += [one.key async for one in files.list(f"results/{owner}/{sha256}/")]
    return found


async def remove(found: Belongings, image_id: str, owner: str, files: FileStore) -> None:
    """Remove an image's objects, originals and results, and its references to bytes."""
    for key in (*found.objects, *found.results):
        await files.delete(key)
    for key in found.originals:
        # The same bytes may have been submitted again since the check above.
        if not await has_other_references(files, owner, key.rpartition("/")[2], image_id):
            await files.delete(key)
    for sha256 in found.hashes:
        await release(files, owner, sha256, image_id)


async def receipts_of(image_id: str, generation: int, files: FileStore) -> dict[str, Receipt | None]:
    """Return the receipts of an image up to a generation by key; None for one that cannot be read."""
    keys = [key async for key in receipt_keys(files, image_id) if 0 < generation_of(key) <= generation]
    return {key: await read_receipt(files, job_of(key)) for key in keys}


def _hashes(known: ImageRecord | None, receipts: Collection[Receipt | None]) -> set[str]:
    refs = [known.original, known.master] if known is not None else []
    # The original of a rejected or unfinished image is named only in its receipt.
    refs += [receipt.original for receipt in receipts if receipt is not None]
    return {ref.sha256 for ref in refs if ref is not None}
