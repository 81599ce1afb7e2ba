"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): a request may be retried safely.

An attempt is an object created conditionally, so one request wins. It contains the request's fingerprint, the ids of
the images it creates, and a lease that the gateway renews while it works. After a gateway crash the next attempt uses
the same image ids and creates no image twice. The answer is stored in the attempt and replayed until the key expires.
The attempt of a rejected request is removed, so that the request may be sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import http_sf
from fastapi import Request
from pydantic import BaseModel, ValidationError

from gateway.http.problems import Problem, unavailable
from gateway.settings import GatewaySettings
from schemas.http.problems import ProblemCode
from schemas.stored.idempotency import IDEMPOTENCY, Attempt
from schemas.values import ImageId, Owner, new_image_id
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.object_store.tombstones import Tombstones

log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
_KEY_LENGTH = 255
_BARE = re.compile(r"^[A-Za-z0-9._~/+=-]{1,255}$")
_MAX_ATTEMPT_BYTES = 1_000_000  # read limit, far above the answer to a batch
_RENEWALS = 3  # per lease

KEY_PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": (
        "Makes the request safe to retry: the same request with the same key gets the same answer, with "
        f"`{REPLAYED}: true`. A quoted string (RFC 8941) or a bare token, for example a UUID."
    ),
    "schema": {"type": "string", "pattern": r'^("[ !#-\[\]-~]{1,255}"|[A-Za-z0-9._~/+=-]{1,255})$'},
    "example": '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
}
"""OpenAPI description of the header."""


@dataclass(frozen=True, slots=True)
class Work:
    """Arguments of one attempt: the image ids to use, and whether an earlier attempt may have used them."""

    image_ids: tuple[ImageId, ...]
    again: bool = False


@dataclass(frozen=True, slots=True)
class Answer(Generic[M]):
    """The answer to a request. One that is not `final` is not stored: a retry continues the request."""

    status: int
    body: M
    final: bool = True
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Executes requests with an Idempotency-Key once."""

    settings: GatewaySettings
    files: FileStore
    clock: Callable[[], float] = time.time

    async def once(
        self,
        request: Request,
        owner: Owner,
        payload: Any,
        kind: type[M],
        work: Callable[[Work], Awaitable[Answer[M]]],
        *,
        images: int = 1,
    ) -> Answer[M]:
        """Do the work, or return the stored answer for the same key; without a key do the work.

        `payload` is the request's content as plain values, `images` the number of image ids. Raises Problem: the key
        is malformed (400), in use (409), or belongs to another request (422); also propagates errors of the work.
        """
        key = read_key(request)
        if key is None:
            return await work(Work(_new_ids(images)))
        folder = f"{IDEMPOTENCY}{owner}/{hashlib.sha256(key.encode()).hexdigest()}/"
        content = [request.method, request.scope["route"].path, payload]
        fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        try:
            mine = await self._begin(folder, fingerprint, images)
        except (DependencyUnavailable, TimeoutError) as error:
            raise unavailable("The object store", retry_after_s=self.settings.retry_after_s) from error
        if mine.answer is not None:
            return Answer(mine.status or 202, kind.model_validate(mine.answer), replayed=True)
        try:
            async with self._renewed(folder, mine):
                answer = await work(Work(mine.image_ids, again=mine.attempt > 1))
        except BaseException:
            await asyncio.shield(self._remove(folder, mine))
            raise
        await asyncio.shield(self._finish(folder, mine, answer))
        return answer

    async def _begin(self, folder: str, fingerprint: str, images: int) -> Attempt:
        """Return a new attempt, or one already answered. Raises Problem, DependencyUnavailable, TimeoutError."""
        now = self.clock()
        mine = Attempt(
            attempt=1,
            token=uuid.uuid4().hex,
            fingerprint=fingerprint,
            image_ids=_new_ids(images),
            lease_until=now + self.settings.idempotency_lease_s,
            expires_at=now + self.settings.idempotency_expiry_s,
        )
        for _ in range(3):  # the existing attempt may expire or be removed concurrently
            if await self._create(folder, mine):
                return mine
            last = await self._last(folder)
            if last is None:
                mine = mine.model_copy(update={"attempt": 1})
                continue
            if last.token == mine.token:  # our write succeeded although its response was lost
                return mine
            if last.fingerprint != fingerprint:
                detail = "The Idempotency-Key was used with a different request. Send this request with a new key."
                raise Problem(ProblemCode.IDEMPOTENCY_KEY_REUSED, detail)
            if last.answer is not None:
                return last
            if last.lease_until > self.clock():
                raise self._in_use(last.lease_until - self.clock())
            ids = await self._usable(last.image_ids)
            mine = mine.model_copy(
                update={"attempt": last.attempt + 1, "image_ids": ids, "expires_at": last.expires_at}
            )
        raise self._in_use(1.0)

    async def _usable(self, image_ids: tuple[ImageId, ...]) -> tuple[ImageId, ...]:
        """Return the ids, with new ones for images that have a tombstone."""
        tombstones = Tombstones(self.files)
        deleted = [await self._bounded(tombstones.get(image_id)) is not None for image_id in image_ids]
        return tuple(new_image_id() if dead else known for known, dead in zip(image_ids, deleted, strict=True))

    async def _last(self, folder: str) -> Attempt | None:
        """Return the newest unexpired attempt; remove expired ones."""
        newest: Attempt | None = None
        for key in await self._bounded(self._keys(folder)):
            try:
                body = await self._bounded(self.files.get(key, limit=_MAX_ATTEMPT_BYTES))
                found = Attempt.model_validate_json(body)
            except ObjectMissing:
                continue
            except ValidationError as error:
                raise DependencyUnavailable(f"{key} is not valid: {error.error_count()} errors") from error
            if found.expires_at > self.clock():
                newest = found
            else:
                await self._bounded(self.files.delete(key))
        return newest

    async def _keys(self, folder: str) -> list[str]:
        return [info.key async for info in self.files.list(folder)]

    @asynccontextmanager
    async def _renewed(self, folder: str, mine: Attempt) -> AsyncIterator[None]:
        """Renew the lease until the block exits."""
        done = asyncio.Event()

        async def renew() -> None:
            while True:
                try:
                    await bounded(done.wait(), self.settings.idempotency_lease_s / _RENEWALS)
                except TimeoutError:
                    until = self.clock() + self.settings.idempotency_lease_s
                    await self._write(folder, mine.model_copy(update={"lease_until": until}))
                else:
                    return

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            done.set()  # not cancelled: a renewal in flight could overwrite the stored answer
            await asyncio.shield(renewing)

    async def _finish(self, folder: str, mine: Attempt, answer: Answer[M]) -> None:
        if answer.final:
            body = answer.body.model_dump(mode="json")
            await self._write(folder, mine.model_copy(update={"status": answer.status, "answer": body}))
        else:
            await self._write(folder, mine.model_copy(update={"lease_until": 0.0}))

    async def _write(self, folder: str, attempt: Attempt) -> None:
        body = attempt.model_dump_json().encode()
        try:
            await self._bounded(self.files.put(_name(folder, attempt), body, content_type="application/json"))
        except (DependencyUnavailable, TimeoutError) as error:  # the lease expires; the next attempt uses the same ids
            log.warning(
                "could not store an idempotency attempt", extra={"attempt": attempt.attempt, "error": repr(error)}
            )

    async def _create(self, folder: str, attempt: Attempt) -> bool:
        body = attempt.model_dump_json().encode()
        name = _name(folder, attempt)
        return await self._bounded(self.files.create(name, body, content_type="application/json"))

    async def _remove(self, folder: str, mine: Attempt) -> None:
        # Only this attempt: the work of an earlier, crashed one is still to be continued.
        try:
            await self._bounded(self.files.delete(_name(folder, mine)))
        except (DependencyUnavailable, TimeoutError) as error:  # the lease expires
            log.warning("could not remove an idempotency attempt", extra={"error": repr(error)})

    async def _bounded(self, call: Awaitable[T]) -> T:
        return await bounded(call, self.settings.storage_timeout_s)

    def _in_use(self, seconds: float) -> Problem:
        wait = max(1, min(math.ceil(seconds), math.ceil(self.settings.idempotency_lease_s)))
        detail = f"A request with this Idempotency-Key is in progress. Retry after {wait} s."
        return Problem(ProblemCode.IDEMPOTENCY_KEY_IN_USE, detail, headers={"Retry-After": str(wait)})


def read_key(request: Request) -> str | None:
    """Return the Idempotency-Key of a request, None if it has none. Raises Problem."""
    given = request.headers.getlist(HEADER)
    if not given:
        return None
    text = given[0].strip()
    if len(given) == 1 and _BARE.match(text):
        return text
    try:
        item = http_sf.parse(", ".join(given).encode(), tltype="item")
    except ValueError:
        raise _malformed() from None
    key = item[0] if isinstance(item, tuple) else None
    if not isinstance(key, str) or not 1 <= len(key) <= _KEY_LENGTH:
        raise _malformed()
    return key


def _malformed() -> Problem:
    detail = (
        f"Idempotency-Key must be one string of 1 to {_KEY_LENGTH} characters, "
        'for example "8e03978e-40d5-43dd-bc93-6894a57f9324".'
    )
    return Problem(ProblemCode.INVALID_IDEMPOTENCY_KEY, detail)


def _new_ids(count: int) -> tuple[ImageId, ...]:
    return tuple(new_image_id() for _ in range(count))


def _name(folder: str, attempt: Attempt) -> str:
    return f"{folder}{attempt.attempt:06}.json"
