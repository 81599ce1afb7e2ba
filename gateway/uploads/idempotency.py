"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07): sending a request again is harmless.

An attempt is an object that only one can create: it holds what the request says, the ids of the images it will make,
and until when it is to be believed that somebody works on it. That time is put off while the work goes on. After a
gateway has died the next attempt takes the same image ids, so that what the first has accepted is not made twice. The
answer is written into the attempt and given again until the key expires. What was refused is forgotten: it may be
sent anew.
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
_MAX_ATTEMPT_BYTES = 1_000_000  # far more than a batch's answer
_RENEWALS = 3  # in the time of one lease

KEY_PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": (
        "Makes the request safe to send again: the same key and the same request have the same answer, with "
        f"`{REPLAYED}: true`. A quoted string of RFC 8941, or a bare word such as a UUID."
    ),
    "schema": {"type": "string", "pattern": r'^("[ !#-\[\]-~]{1,255}"|[A-Za-z0-9._~/+=-]{1,255})$'},
    "example": '"8e03978e-40d5-43dd-bc93-6894a57f9324"',
}
"""How OpenAPI describes the header."""


@dataclass(frozen=True, slots=True)
class Work:
    """What whoever does the work is told: the ids to give, and whether somebody may have begun with them before."""

    image_ids: tuple[ImageId, ...]
    again: bool = False


@dataclass(frozen=True, slots=True)
class Answer(Generic[M]):
    """An answer that is given again. One that is not `final` is not kept: sent again, the request is gone on with."""

    status: int
    body: M
    final: bool = True
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Has requests that carry a key done once."""

    settings: GatewaySettings
    files: FileStore
    clock: Callable[[], float] = time.time

    async def once(
        self,
        request: Request,
        owner: Owner,
        said: Any,
        kind: type[M],
        work: Callable[[Work], Awaitable[Answer[M]]],
        *,
        images: int = 1,
    ) -> Answer[M]:
        """Do the work, or return the answer of the request that had the same key; without a key just do it.

        `said` is all that the request says, as plain values; `images` how many it may make. Raises Problem: the key
        cannot be read (400), is in use (409), or belongs to another request (422); and whatever the work raises.
        """
        key = read_key(request)
        if key is None:
            return await work(Work(_new_ids(images)))
        folder = f"{IDEMPOTENCY}{owner}/{hashlib.sha256(key.encode()).hexdigest()}/"
        asked = [request.method, request.scope["route"].path, said]
        fingerprint = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()
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
            await asyncio.shield(self._forget(folder, mine))
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
        for _ in range(3):  # what is there may expire, or be forgotten, at the very moment it is looked at
            if await self._create(folder, mine):
                return mine
            last = await self._last(folder)
            if last is None:
                mine = mine.model_copy(update={"attempt": 1})
                continue
            if last.token == mine.token:  # written by a try whose answer was lost
                return mine
            if last.fingerprint != fingerprint:
                detail = "The Idempotency-Key was sent before, with a request that said something else."
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
        """Return the ids, but new ones for images that have been erased, or disowned when they were not accepted."""
        erasures = Tombstones(self.files)
        gone = [await self._bounded(erasures.get(image_id)) is not None for image_id in image_ids]
        return tuple(new_image_id() if over else known for known, over in zip(image_ids, gone, strict=True))

    async def _last(self, folder: str) -> Attempt | None:
        """Return the newest attempt that has not expired; remove those that have."""
        newest: Attempt | None = None
        for key in await self._bounded(self._keys(folder)):
            try:
                body = await self._bounded(self.files.get(key, limit=_MAX_ATTEMPT_BYTES))
                found = Attempt.model_validate_json(body)
            except ObjectMissing:
                continue
            except ValidationError as error:
                raise DependencyUnavailable(f"{key} cannot be read: {error.error_count()} errors") from error
            if found.expires_at > self.clock():
                newest = found
            else:
                await self._bounded(self.files.delete(key))
        return newest

    async def _keys(self, folder: str) -> list[str]:
        return [info.key async for info in self.files.list(folder)]

    @asynccontextmanager
    async def _renewed(self, folder: str, mine: Attempt) -> AsyncIterator[None]:
        """Put off the end of the lease while the work goes on."""
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
            done.set()  # never cancelled: a write under way would come after the answer's
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
        except (
            DependencyUnavailable,
            TimeoutError,
        ) as error:  # the lease ends, and the next attempt finds what was done
            log.warning("an attempt could not be noted", extra={"attempt": attempt.attempt, "error": repr(error)})

    async def _create(self, folder: str, attempt: Attempt) -> bool:
        body = attempt.model_dump_json().encode()
        name = _name(folder, attempt)
        return await self._bounded(self.files.create(name, body, content_type="application/json"))

    async def _forget(self, folder: str, mine: Attempt) -> None:
        # Only our own: what an attempt before it has begun is still gone on with.
        try:
            await self._bounded(self.files.delete(_name(folder, mine)))
        except (DependencyUnavailable, TimeoutError) as error:  # the lease ends
            log.warning("an attempt could not be forgotten", extra={"error": repr(error)})

    async def _bounded(self, call: Awaitable[T]) -> T:
        return await bounded(call, self.settings.storage_timeout_s)

    def _in_use(self, seconds: float) -> Problem:
        wait = max(1, min(math.ceil(seconds), math.ceil(self.settings.idempotency_lease_s)))
        detail = "A request with this Idempotency-Key is being worked on; send it again later for its answer."
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
    detail = f'Send one string of 1 to {_KEY_LENGTH} characters, such as "8e03978e-40d5-43dd-bc93-6894a57f9324".'
    return Problem(ProblemCode.INVALID_IDEMPOTENCY_KEY, detail)


def _new_ids(count: int) -> tuple[ImageId, ...]:
    return tuple(new_image_id() for _ in range(count))


def _name(folder: str, attempt: Attempt) -> str:
    return f"{folder}{attempt.attempt:06}.json"
