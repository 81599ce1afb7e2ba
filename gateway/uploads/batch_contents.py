"""Contents of a batch: the files of a form or the members of an archive, with the fields of each."""

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
from gateway.http.problems import Problem, invalid_model
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
"""The form field with the fields of single files."""

_MAX_ITEMS_BYTES = 1 << 20
_FIELDS = FIELDS | {ITEMS}
_NAMES = frozenset({"file", "files"})
_PER_FILE: TypeAdapter[list[BatchDetails | None] | dict[str, BatchDetails]] = TypeAdapter(
    list[BatchDetails | None] | dict[str, BatchDetails]
)


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a batch."""

    name: str | None  # from the client or the archive
    ready: Callable[[], SpooledFile]  # spools the file; blocks, raises Problem


@dataclass(frozen=True, slots=True)
class Batch:
    """The files and fields of a request."""

    items: tuple[Item, ...]
    fields: Mapping[str, str]
    hashes: tuple[str, ...]  # SHA-256 of the archive, or of each file


@asynccontextmanager
async def receive_batch(request: Request, settings: GatewaySettings) -> AsyncIterator[Batch]:
    """Receive an archive, as the body or as the only file of a form, or a form of images.

    Raises Problem. Spooled files are removed on exit.
    """
    fields = dict(request.query_params)
    if media_type(request) in ZIP_TYPES:
        async with receive_archive(request, settings, max_bytes=settings.max_batch_bytes) as file:
            if not file.is_archive:
                raise Problem(ProblemCode.INVALID_ARCHIVE, "The body is not a zip archive, by its signature.")
            async with _opened(file, fields, settings) as batch:
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
            async with _opened(found.files[0], fields | found.fields, settings) as batch:
                yield batch
        else:
            items = tuple(Item(file.filename, partial(_image, file)) for file in found.files)
            yield Batch(items, fields | found.fields, tuple(file.sha256 for file in found.files))


def details_of(batch: Batch, *, max_metadata_bytes: int) -> list[Details]:
    """Return the fields of each file. Raises Problem."""
    common = read_details(batch.fields, max_metadata_bytes=max_metadata_bytes)
    found = []
    for own in _per_file(batch):
        changes = {name: value for name, value in own or () if value is not None}
        if "metadata" in changes:
            changes["context"] = check_metadata(changes.pop("metadata"), max_bytes=max_metadata_bytes)
        if "tags" in changes:
            changes["tags"] = tuple(dict.fromkeys(changes["tags"]))
        if "profile" in changes:
            changes["profile"] = changes["profile"].as_profile()
        found.append(replace(common, **changes))
    return found


@asynccontextmanager
async def _opened(file: Arriving, fields: Mapping[str, str], settings: GatewaySettings) -> AsyncIterator[Batch]:
    """Open a received archive. Raises Problem."""
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
        raise Problem(ProblemCode.UNSUPPORTED_FORMAT, "A form may contain an archive only as its single file.")
    return file.ready()


def _per_file(batch: Batch) -> list[BatchDetails | None]:
    """Return the field `items` per file. Raises Problem."""
    text = batch.fields.get(ITEMS)
    if not text:
        return [None] * len(batch.items)
    try:
        per_file = _PER_FILE.validate_json(text)
    except ValidationError as error:
        raise invalid_model(error) from None
    if isinstance(per_file, dict):
        unknown = sorted(set(per_file) - {item.name for item in batch.items if item.name is not None})
        if unknown:
            raise _invalid_field(
                tuple(f"{ITEMS}.{name[:200]}" for name in unknown[:20]), "no file of the batch has this name"
            )
        return [per_file.get(item.name or "") for item in batch.items]
    if len(per_file) > len(batch.items):
        raise _invalid_field((ITEMS,), f"has {len(per_file)} entries for {len(batch.items)} files")
    return [*per_file, *[None] * (len(batch.items) - len(per_file))]


def _invalid_field(fields: tuple[str, ...], detail: str) -> Problem:
    items = tuple(ProblemItem(field=field, detail=detail) for field in fields)
    return Problem(ProblemCode.INVALID_FIELD, f"{fields[0]}: {detail}", items)
