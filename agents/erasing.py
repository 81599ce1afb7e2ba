"""Erasing an image: everything the object store holds of it goes, up to the generation that deletes it.

What a repeated deletion needs to know (the record's hashes, the receipts) goes last, so that one that was interrupted
anywhere can be finished. What other images of the owner share stays.
"""

from __future__ import annotations

from pydantic import ValidationError

from schemas.facts import DeletionRequested
from schemas.receipts import Receipt
from schemas.values import ImageState, split_job_id
from streams.files import FileStore, ObjectMissing, delete_prefix, image_prefix, original_key
from streams.vectors import ImageRecord, ReadModel

RECEIPT_BYTES = 1 << 20  # far more than the gateway writes


async def erase(event: DeletionRequested, known: ImageRecord | None, vectors: ReadModel, files: FileStore) -> None:
    """Remove objects, original, results and the record, in this order; then the receipts. Repeats harmlessly."""
    if known is not None and not known.deleted:
        # From here on the image does not count as a user of its bytes: of two deletions at once, the last one sees it.
        await vectors.merge(event.image_id, known.generation, {"state": ImageState.DELETED.value})
    receipts = await _receipts(event, files)
    prefix = image_prefix(event.image_id)
    async for found in files.list(prefix):
        generation = found.key.removeprefix(prefix).partition("/")[0]
        if generation.isdigit() and int(generation) <= event.generation:
            await files.delete(found.key)
    for sha256 in await _hashes(event, known, receipts, files):
        if await vectors.uses_of(event.owner, sha256) == 0:
            # Only ever at our own key: an event may name any object as its original, its owner's or not.
            await files.delete(original_key(event.owner, sha256))
            await delete_prefix(files, f"results/{event.owner}/{sha256}/")
    await vectors.bury(event.image_id, event.owner, event.generation)
    for key in receipts:
        await files.delete(key)


async def _receipts(event: DeletionRequested, files: FileStore) -> list[str]:
    keys = []
    async for found in files.list(f"jobs/{event.image_id}."):
        try:
            _, generation = split_job_id(found.key.removeprefix("jobs/").removesuffix(".json"))
        except ValueError:
            continue
        if generation <= event.generation:
            keys.append(found.key)
    return keys


async def _hashes(
    event: DeletionRequested, known: ImageRecord | None, receipts: list[str], files: FileStore
) -> list[str]:
    refs = [known.original, known.master] if known is not None else []
    for key in receipts:  # an image that was refused, or is still on its way, has its original only there
        try:
            receipt = Receipt.model_validate_json(await files.get(key, limit=RECEIPT_BYTES))
        except (ObjectMissing, ValidationError):
            continue
        if receipt.owner == event.owner:
            refs.append(receipt.original)
    return sorted({ref.sha256 for ref in refs if ref is not None})
