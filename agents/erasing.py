"""Erasing an image: everything the object store holds of it goes, up to the generation that deletes it.

What a repeated deletion needs to know (the record's hashes, the receipts) goes last, so that one that was interrupted
anywhere can be finished. What other images of the owner share stays.
"""

from __future__ import annotations

from schemas.facts import DeletionRequested
from schemas.receipts import Receipt
from schemas.values import ImageState, split_job_id
from streams.files import FileStore, ObjectMissing, delete_prefix, image_prefix, original_key
from streams.originals import claimed_by_others, release
from streams.vectors import ImageRecord, ReadModel

RECEIPT_BYTES = 1 << 20  # far more than the gateway writes


async def erase(event: DeletionRequested, known: ImageRecord | None, vectors: ReadModel, files: FileStore) -> bool:
    """Remove objects, original, results and the record, in this order; then the receipts. Repeats harmlessly.

    False, and nothing is done, if the read model does not know the image and its receipts are another owner's.
    """
    receipts = await _receipts(event, files)
    if known is None and any(receipt.owner != event.owner for receipt in receipts.values() if receipt is not None):
        return False
    if known is not None and not known.deleted:
        # From here on the image does not count as a user of its bytes: of two deletions at once, the last one sees it.
        await vectors.merge(event.image_id, known.generation, {"state": ImageState.DELETED.value})
    prefix = image_prefix(event.image_id)
    async for found in files.list(prefix):
        generation = found.key.removeprefix(prefix).partition("/")[0]
        if generation.isdigit() and int(generation) <= event.generation:
            await files.delete(found.key)
    refs = [known.original, known.master] if known is not None else []
    # An image that was refused, or is still on its way, has its original only in its receipt.
    refs += [receipt.original for receipt in receipts.values() if receipt is not None]
    for sha256 in sorted({ref.sha256 for ref in refs if ref is not None}):
        if await vectors.uses_of(event.owner, sha256) == 0:
            # The read model learns of an image long after it was accepted; its claim is there from the start.
            if not await claimed_by_others(files, event.owner, sha256, event.image_id):
                # Only ever at our own key: an event may name any object as its original, its owner's or not.
                await files.delete(original_key(event.owner, sha256))
            await delete_prefix(files, f"results/{event.owner}/{sha256}/")
        await release(files, event.owner, sha256, event.image_id)
    await vectors.bury(event.image_id, event.owner, event.generation)
    for key in receipts:
        await files.delete(key)
    return True


async def _receipts(event: DeletionRequested, files: FileStore) -> dict[str, Receipt | None]:
    """Return the receipts of the image up to this generation by key; None for one that cannot be read."""
    found: dict[str, Receipt | None] = {}
    async for info in files.list(f"jobs/{event.image_id}."):
        try:
            _, generation = split_job_id(info.key.removeprefix("jobs/").removesuffix(".json"))
        except ValueError:
            continue
        if generation > event.generation:
            continue
        try:
            found[info.key] = Receipt.model_validate_json(await files.get(info.key, limit=RECEIPT_BYTES))
        except (ObjectMissing, ValueError):
            found[info.key] = None
    return found
