"""Accepting: stored, receipt written, delivery confirmed by Kafka; only then is a request accepted.

When a step fails, everything is taken back and the client hears 503: the receipt, the claim on the original, and the
original if this request brought it and nobody else claims it. Should Kafka have the event all the same, the image is
deleted like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import JsonValue

from gateway.ports import EventSink
from gateway.problems import Problem, away
from gateway.settings import GatewaySettings
from gateway.uploads import SpooledFile
from schemas.envelope import Event, now
from schemas.facts import DeletionRequested
from schemas.http_api import MAX_URL_LENGTH, ProblemCode
from schemas.intake import FetchRequested, ImageUploaded
from schemas.receipts import Receipt, ReceiptKind
from schemas.values import ImageId, Lane, ObjectRef, Owner, job_id_of, new_image_id
from streams import topics
from streams.deadlines import bounded
from streams.erasures import Erasures
from streams.errors import DependencyAway, Unconfirmed
from streams.files import FileStore, original_key, receipt_key
from streams.metrics import UPLOAD_BYTES
from streams.originals import claim, release, withdraw
from streams.receipts import read_receipt
from streams.topics import Topic

log = logging.getLogger(__name__)

_MAX_RECEIPT_BYTES = 256 * 1024
_MAX_DEPTH = 32  # of nested metadata: deep enough for people, shallow enough for every JSON reader


@dataclass(frozen=True, slots=True)
class Accepting:
    """What accepting needs: where objects go, where events go, and how long either may take."""

    settings: GatewaySettings
    files: FileStore
    events: EventSink

    async def upload(
        self,
        file: SpooledFile,
        *,
        owner: Owner,
        bucket: str,
        context: dict[str, JsonValue],
        lane: Lane = Lane.INTERACTIVE,
        traceparent: str | None = None,
    ) -> Receipt:
        """Accept an uploaded file. Raises Problem (503), and then there is no job."""
        image_id = new_image_id()
        brought = False
        try:
            async with self._bounded("The object store"):
                # The claim comes first: from here on nobody removes the bytes from under this image.
                await claim(self.files, owner, file.sha256, image_id)
                brought = not await self._is_stored(file, owner)
                original = await self._store(file, owner, write=brought)
            receipt = await self._announce_upload(image_id, file, original, owner, bucket, context, lane, traceparent)
        except BaseException:
            # Shielded: a client that hangs up must not leave half an acceptance.
            await asyncio.shield(self._withdraw(image_id, owner, file.sha256, brought=brought))
            raise
        await self._make_sure(file, owner)
        UPLOAD_BYTES.labels("ingest").inc(file.size)
        return receipt

    async def _announce_upload(
        self,
        image_id: ImageId,
        file: SpooledFile,
        original: ObjectRef,
        owner: Owner,
        bucket: str,
        context: dict[str, JsonValue],
        lane: Lane,
        traceparent: str | None,
    ) -> Receipt:
        receipt = Receipt(
            job_id=job_id_of(image_id, 1),
            image_id=image_id,
            owner=owner,
            generation=1,
            kind=ReceiptKind.UPLOAD,
            submitted_at=now(),
            lane=lane,
            bucket=bucket,
            filename=file.filename,
            context=context,
            original=original,
        )
        event = ImageUploaded(
            image_id=image_id,
            owner=owner,
            generation=1,
            profile=receipt.profile,
            bucket=bucket,
            filename=file.filename,
            context=context,
            submitted_at=receipt.submitted_at,
            original=original,
        )
        await self._promise(receipt, topics.UPLOADED, event, traceparent)
        return receipt

    async def fetch(
        self,
        url: str,
        *,
        owner: Owner,
        bucket: str,
        context: dict[str, JsonValue],
        lane: Lane = Lane.INTERACTIVE,
        traceparent: str | None = None,
    ) -> Receipt:
        """Accept a URL to be fetched. Raises Problem (503), and then there is no job."""
        image_id = new_image_id()
        receipt = Receipt(
            job_id=job_id_of(image_id, 1),
            image_id=image_id,
            owner=owner,
            generation=1,
            kind=ReceiptKind.FETCH,
            submitted_at=now(),
            lane=lane,
            bucket=bucket,
            context=context,
            url=url,
        )
        event = FetchRequested(
            image_id=image_id,
            owner=owner,
            generation=1,
            profile=receipt.profile,
            bucket=bucket,
            context=context,
            submitted_at=receipt.submitted_at,
            url=url,
        )
        await self._promise(receipt, topics.FETCH_REQUESTED, event, traceparent)
        return receipt

    async def delete(self, image_id: str, generation: int, *, owner: Owner, traceparent: str | None = None) -> Receipt:
        """Accept the deletion of an image now at `generation`. Its receipt hides the image at once.

        Asking twice is harmless: the same generation, the same event id. Raises Problem (503), and then the image
        is as it was.
        """
        while True:
            event = DeletionRequested(image_id=image_id, owner=owner, generation=generation + 1)
            known = await known_receipt(self.files, event.job_id, timeout_s=self.settings.storage_timeout_s)
            if known is None or known.kind is ReceiptKind.DELETE:
                break
            generation += 1  # a newer run was accepted that the read model has not seen yet
        receipt = known or Receipt(
            job_id=event.job_id,
            image_id=image_id,
            owner=owner,
            generation=event.generation,
            kind=ReceiptKind.DELETE,
            submitted_at=event.occurred_at,
        )
        erasures, news = Erasures(self.files), True  # a request that broke off may have been written
        try:
            async with self._bounded("The object store"):
                news = await erasures.request(image_id, owner, event.generation)
            await self._promise(receipt, topics.FACTS, event, traceparent, fresh=known is None)
        except BaseException:
            if news:
                await asyncio.shield(self._take_back_erasure(erasures, image_id, event.generation))
            raise
        return receipt

    async def _is_stored(self, file: SpooledFile, owner: Owner) -> bool:
        found = await self.files.stat(original_key(owner, file.sha256))
        return found is not None and found.size == file.size

    async def _store(self, file: SpooledFile, owner: Owner, *, write: bool) -> ObjectRef:
        key = original_key(owner, file.sha256)
        if write:
            return await self.files.put(key, file.path, content_type=file.content_type, sha256=file.sha256)
        bucket, kind = self.files.bucket, file.content_type
        return ObjectRef(bucket=bucket, key=key, sha256=file.sha256, size=file.size, content_type=kind)

    async def _make_sure(self, file: SpooledFile, owner: Owner) -> None:
        """Put the original back if somebody who had not seen our claim removed it at the very moment it was made."""
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                if not await self._is_stored(file, owner):
                    await self._store(file, owner, write=True)
        except (DependencyAway, TimeoutError) as error:  # accepted all the same: it was there when we claimed it
            log.warning("an original could not be looked at again", extra={"error": repr(error)})

    async def _withdraw(self, image_id: str, owner: Owner, sha256: str, *, brought: bool) -> None:
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                await (withdraw if brought else release)(self.files, owner, sha256, image_id)
        except (DependencyAway, TimeoutError) as error:
            log.warning("a claim could not be taken back", extra={"sha256": sha256, "error": repr(error)})

    async def _promise(
        self, receipt: Receipt, topic: Topic, event: Event, traceparent: str | None, *, fresh: bool = True
    ) -> None:
        sending = False
        try:
            async with self._bounded("The object store"):
                await self._write(receipt)
            sending = True
            async with self._bounded("Kafka", self.settings.delivery_timeout_s):
                await self.events.send(topic, event, traceparent=traceparent, bulk=receipt.lane is Lane.BULK)
        except BaseException as error:
            if fresh:
                await asyncio.shield(self._take_back(receipt_key(receipt.job_id)))
            if sending and receipt.kind is not ReceiptKind.DELETE and _may_be_in_log(error):
                await asyncio.shield(self._disown(receipt))
            raise

    async def _write(self, receipt: Receipt) -> None:
        body = receipt.model_dump_json().encode()
        await self.files.put(receipt_key(receipt.job_id), body, content_type="application/json")

    async def _disown(self, refused: Receipt) -> None:
        """Delete an image nobody was promised, whose event Kafka may have taken all the same.

        Whatever is at work on it drops it, and nobody sees it; the reconciler has the indexer remove what there is.
        """
        image_id, owner, generation = refused.image_id, refused.owner, refused.generation + 1
        job_id, kind = job_id_of(image_id, generation), ReceiptKind.DELETE
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                await Erasures(self.files).make_certain(image_id, owner, generation)
                await self._write(
                    Receipt(
                        job_id=job_id,
                        image_id=image_id,
                        owner=owner,
                        generation=generation,
                        kind=kind,
                        submitted_at=now(),
                    )
                )
        except (DependencyAway, TimeoutError) as error:
            log.warning("an image could not be disowned", extra={"image_id": image_id, "error": repr(error)})

    async def _take_back(self, key: str) -> None:
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                await self.files.delete(key)
        except (DependencyAway, TimeoutError) as error:
            log.warning("a receipt could not be taken back", extra={"key": key, "error": repr(error)})

    async def _take_back_erasure(self, erasures: Erasures, image_id: str, generation: int) -> None:
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                await erasures.take_back(image_id, generation)
        except (DependencyAway, TimeoutError) as error:  # the janitor asks for the deletion again
            log.warning("an erasure could not be taken back", extra={"image_id": image_id, "error": repr(error)})

    @contextlib.asynccontextmanager
    async def _bounded(self, what: str, seconds: float | None = None) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds or self.settings.storage_timeout_s):
                yield
        except (DependencyAway, TimeoutError) as error:
            log.warning("not accepted: %s does not answer", what, extra={"error": repr(error)})
            raise away(what, retry_after_s=self.settings.retry_after_s) from error


def _may_be_in_log(error: BaseException) -> bool:
    """Say whether an event that was not confirmed may have been taken: always, unless Kafka was never given it."""
    cause = error.__cause__ if isinstance(error, Problem) else error
    return isinstance(cause, Unconfirmed) or not isinstance(cause, DependencyAway)


async def known_receipt(files: FileStore, job_id: str, *, timeout_s: float) -> Receipt | None:
    """Return the receipt of a job, None if there is none. Raises DependencyAway or TimeoutError."""
    return await bounded(read_receipt(files, job_id, limit=_MAX_RECEIPT_BYTES), timeout_s)


def read_metadata(text: str | None, *, max_bytes: int) -> dict[str, JsonValue]:
    """Return the client's metadata. Raises Problem unless it is a JSON object of at most `max_bytes`."""
    if text is None or not text.strip():
        return {}
    if len(text.encode()) > max_bytes:
        raise Problem(ProblemCode.INVALID_METADATA, f"The metadata may have {max_bytes} bytes at most.")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Problem(ProblemCode.INVALID_METADATA, "The metadata is not JSON.") from None
    if not isinstance(value, dict):
        raise Problem(ProblemCode.INVALID_METADATA, "The metadata must be a JSON object.")
    return check_metadata(value, max_bytes=max_bytes)


def check_metadata(value: dict[str, JsonValue], *, max_bytes: int) -> dict[str, JsonValue]:
    """Return the metadata. Raises Problem if it is too large, too deep, or JSON that others could not read."""
    if _depth(value) > _MAX_DEPTH:
        raise Problem(ProblemCode.INVALID_METADATA, f"The metadata may be nested {_MAX_DEPTH} levels deep at most.")
    try:
        # Python reads 1e999 and lone surrogates; neither can be written again.
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
    except ValueError:
        detail = "The metadata has a number or a character that JSON cannot carry."
        raise Problem(ProblemCode.INVALID_METADATA, detail) from None
    if size > max_bytes:
        raise Problem(ProblemCode.INVALID_METADATA, f"The metadata may have {max_bytes} bytes at most.")
    return value


def read_url(url: str) -> str:
    """Return the URL. Raises Problem if it cannot be one to fetch; whether it may be is the fetcher's to say."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Problem(ProblemCode.INVALID_URL, "This is not a URL.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Problem(ProblemCode.INVALID_URL, "Give an absolute URL that begins with http:// or https://.")
    if len(url) > MAX_URL_LENGTH or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise Problem(ProblemCode.INVALID_URL, "The URL is too long or has white space in it.")
    return url


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # NaN and Infinity are Python's, not RFC 8259's


def _depth(value: JsonValue) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        found, depth = waiting.pop()
        deepest = max(deepest, depth)
        inside = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        waiting.extend((item, depth + 1) for item in inside if isinstance(item, dict | list))
    return deepest
