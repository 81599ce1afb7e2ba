"""Originals are kept once per owner and shared by the owner's images: a claim says which image stands on which bytes.

A claim is written before anybody looks whether the bytes are there, and taken back when the image is deleted or was
not accepted after all. Bytes may be removed only when nobody else claims them: the read model alone cannot say, for
it learns of an image long after the image was accepted. Masters, which two originals may share, are claimed likewise,
for the sake of the results kept under their hash.
"""

from __future__ import annotations

from streams.object_store.keys import original_key
from streams.object_store.protocol import FileStore


def claim_prefix(owner: str, sha256: str) -> str:
    """Return the folder of all claims on an owner's bytes."""
    return f"claims/{owner}/{sha256}/"


async def add_reference(files: FileStore, owner: str, sha256: str, image_id: str) -> None:
    """Say that an image stands on these bytes. Twice is harmless. Raises DependencyUnavailable."""
    await files.put(claim_prefix(owner, sha256) + image_id, b"{}", content_type="application/json")


async def release(files: FileStore, owner: str, sha256: str, image_id: str) -> None:
    """Take an image's claim back; one that is not there is no error. Raises DependencyUnavailable."""
    await files.delete(claim_prefix(owner, sha256) + image_id)


async def has_other_references(files: FileStore, owner: str, sha256: str, image_id: str) -> bool:
    """Say whether another image stands on these bytes. Raises DependencyUnavailable."""
    prefix = claim_prefix(owner, sha256)
    async for found in files.list(prefix):
        if found.key != prefix + image_id:
            return True
    return False


async def withdraw(files: FileStore, owner: str, sha256: str, image_id: str) -> None:
    """Take a claim back, and remove the original when it was the last. Raises DependencyUnavailable."""
    await release(files, owner, sha256, image_id)
    if not await has_other_references(files, owner, sha256, image_id):
        await files.delete(original_key(owner, sha256))
