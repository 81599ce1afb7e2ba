"""Reference objects of shared originals: one original per owner and hash, one reference per image that uses it.

A reference is written before the existence check of the bytes, and removed when the image is deleted or not accepted.
Bytes may be removed only without other references; the read model does not suffice, because it records an image long
after its acceptance. Masters, which two originals may share, are referenced too, because of the results keyed by
their hash.
"""

from __future__ import annotations

from streams.object_store.keys import original_key
from streams.object_store.protocol import FileStore


def claim_prefix(owner: str, sha256: str) -> str:
    """Return the key prefix of all references to an owner's bytes."""
    return f"claims/{owner}/{sha256}/"


async def add_reference(files: FileStore, owner: str, sha256: str, image_id: str) -> None:
    """Write an image's reference to these bytes. Idempotent. Raises DependencyUnavailable."""
    await files.put(claim_prefix(owner, sha256) + image_id, b"{}", content_type="application/json")


async def release(files: FileStore, owner: str, sha256: str, image_id: str) -> None:
    """Remove an image's reference; a missing one is not an error. Raises DependencyUnavailable."""
    await files.delete(claim_prefix(owner, sha256) + image_id)


async def has_other_references(files: FileStore, owner: str, sha256: str, image_id: str) -> bool:
    """Return whether another image references these bytes. Raises DependencyUnavailable."""
    prefix = claim_prefix(owner, sha256)
    async for found in files.list(prefix):
        if found.key != prefix + image_id:
            return True
    return False


async def withdraw(files: FileStore, owner: str, sha256: str, image_id: str) -> None:
    """Remove a reference, and the original with the last one. Raises DependencyUnavailable."""
    await release(files, owner, sha256, image_id)
    if not await has_other_references(files, owner, sha256, image_id):
        await files.delete(original_key(owner, sha256))
