"""What a batch brings: the images of a form, or the members of an archive, and what is said of each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from fastapi import Request
from pydantic import TypeAdapter, ValidationError

from gateway.http.json_bodies import media_type
from gateway.http.multipart import Rules
from gateway.http.problems import Problem, invalid_fields
from gateway.http.request_bodies import receive_archive, receive_files
from gateway.http.spooling import Arriving, SpooledFile, room
from gateway.images.user_metadata import check_metadata
from gateway.settings import GatewaySettings
from gateway.uploads.submission_fields import FIELDS, Details, read_details
from gateway.uploads.zip_archives import Archive
from schemas.http.batches import BatchDetails
from schemas.http.problems import ProblemCode, ProblemItem

ZIP_TYPES = ("application/zip", "application/x-zip-compressed")
ITEMS = "items"
"""The field that says something of single files."""

_MAX_ITEMS_BYTES = 1 << 20
_FIELDS = FIELDS | {ITEMS}
_NAMES = frozenset({"file", "files"})
_PER_FILE: TypeAdapter[list[BatchDetails | None] | dict[str, BatchDetails]] = TypeAdapter(
    list[BatchDetails | None] | dict[str, BatchDetails]
)


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a batch."""

    name: str | None  # as the client or the archive says
    ready: Callable[[], SpooledFile]  # has it lie on disk; blocks, raises Problem


@dataclass(frozen=True, slots=True)
class Batch:
    """What a request brought."""

    items: tuple[Item, ...]
    fields: Mapping[str, str]
    hashes: tuple[str, ...]  # of what came: of an archive as a whole, or of each file


@asynccontextmanager
async def receive_batch(request: Request, settings: GatewaySettings) -> AsyncIterator[Batch]:
    """Receive what was sent: an archive as the body or as the one file of a form, or a form of images.

    Raises Problem; all of it is gone on exit.
    """
    said = dict(request.query_params)
    if media_type(request) in ZIP_TYPES:
        async with receive_archive(request, settings, max_bytes=settings.max_batch_bytes) as file:
            if not file.is_archive:
                raise Problem(ProblemCode.INVALID_ARCHIVE, "By its first bytes the body is no zip archive.")
            async with _opened(file, said, settings) as batch:
                yield batch
        return
    rules = Rules(
        _FIELDS,
        settings.max_upload_bytes,
        max(settings.max_metadata_bytes, _MAX_ITEMS_BYTES),
        names=_NAMES,
        max_files=settings.max_batch_files,
        max_total_bytes=settings.max_batch_bytes,
        max_archive_bytes=settings.max_batch_bytes,
    )
    async with receive_files(request, settings, rules) as found:
        if len(found.files) == 1 and found.files[0].is_archive:
            async with _opened(found.files[0], said | found.fields, settings) as batch:
                yield batch
        else:
            items = tuple(Item(file.filename, partial(_image, file)) for file in found.files)
            yield Batch(items, said | found.fields, tuple(file.sha256 for file in found.files))


def details_of(batch: Batch, *, max_metadata_bytes: int) -> list[Details]:
    """Return what is said of each file. Raises Problem."""
    common = read_details(batch.fields, max_metadata_bytes=max_metadata_bytes)
    found = []
    for own in _per_file(batch):
        changes = {name: value for name, value in own or () if value is not None}
        if "metadata" in changes:
            changes["context"] = check_metadata(changes.pop("metadata"), max_bytes=max_metadata_bytes)
        if "tags" in changes:
            changes["tags"] = tuple(dict.fromkeys(changes["tags"]))
        found.append(replace(common, **changes))
    return found


@asynccontextmanager
async def _opened(file: Arriving, fields: Mapping[str, str], settings: GatewaySettings) -> AsyncIterator[Batch]:
    """Open an archive that has arrived. Raises Problem."""
    file.check()
    with room(settings):
        archive = await asyncio.to_thread(Archive, file.path, settings)
    try:
        folder = file.path.parent
        items = tuple(
            Item(member.name, partial(archive.read, member, folder / f"member-{index}"))
            for index, member in enumerate(archive.members)
        )
        yield Batch(items, fields, (file.sha256,))
    finally:
        archive.close()


def _image(file: Arriving) -> SpooledFile:
    if file.is_archive:
        raise Problem(ProblemCode.UNSUPPORTED_FORMAT, "Send an archive alone: nothing else may be beside it.")
    return file.ready()


def _per_file(batch: Batch) -> list[BatchDetails | None]:
    """Return what the field `items` says of each file. Raises Problem."""
    text = batch.fields.get(ITEMS)
    if not text:
        return [None] * len(batch.items)
    try:
        said = _PER_FILE.validate_json(text)
    except ValidationError as error:
        raise invalid_fields(error.errors(include_url=False, include_input=False, include_context=False)) from None
    if isinstance(said, dict):
        unknown = sorted(set(said) - {item.name for item in batch.items if item.name is not None})
        if unknown:
            raise _wrong(tuple(f"{ITEMS}.{name[:200]}" for name in unknown[:20]), "no file of the batch has this name")
        return [said.get(item.name or "") for item in batch.items]
    if len(said) > len(batch.items):
        raise _wrong((ITEMS,), f"says something of {len(said)} files, and there are {len(batch.items)}")
    return [*said, *[None] * (len(batch.items) - len(said))]


def _wrong(fields: tuple[str, ...], detail: str) -> Problem:
    items = tuple(ProblemItem(field=field, detail=detail) for field in fields)
    return Problem(ProblemCode.INVALID_FIELD, f"{fields[0]}: {detail}", items)
