"""The Python client: `Darkroom` and its asyncio twin `AsyncDarkroom`. Needs httpx and the wire models, nothing else.

    with Darkroom("http://127.0.0.1:8080", api_key="dk_…") as darkroom:
        job = darkroom.submit("cat.jpg", metadata={"album": "pets"})
        result = darkroom.wait(job.job_id, timeout_s=60)
        print(result.urls["thumbnail"], [found.label for found in result.objects or ()])

A call the server refuses for the moment (429, 503) is tried again after the time it asks for: the server promises
that nothing of it was accepted. So is a submission whose connection broke: it carries an Idempotency-Key, and the
server makes one image of all tries. A gateway that only its own machine can reach may ask for no credentials.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, JsonValue

from gateway.client import endpoints
from gateway.client.endpoints import OnDuplicate, Refused, Source, Unreachable
from schemas.http.health import Health
from schemas.http.images import ImageBatch, ImageDetails, ImagePage, ImageSizes
from schemas.http.jobs import JobResult, JobStatus
from schemas.http.search import SearchAnswer
from schemas.http.submissions import DeletionSubmitted, ErasureView, Submitted
from schemas.values import ImageState, Lane

__all__ = ["AsyncDarkroom", "Darkroom", "NotFinished", "OnDuplicate", "Refused", "Source", "Unreachable", "credentials"]

M = TypeVar("M", bound=BaseModel)

FIRST_POLL_S, LONGEST_POLL_S = 0.1, 2.0


class NotFinished(TimeoutError):
    """The job had not ended when the time to wait was over; it goes on. `status` is the last one seen."""

    def __init__(self, status: JobStatus, timeout_s: float) -> None:
        super().__init__(f"job {status.job_id} has not ended after {timeout_s:g} s")
        self.status = status


def credentials(token: str | None, api_key: str | None) -> dict[str, str]:
    """Return the headers that say who asks. Raises ValueError when it would be said twice."""
    if token and api_key:
        raise ValueError("give a token or an API key, not both")
    if token:
        return {"Authorization": f"Bearer {token}"}
    return {"X-API-Key": api_key} if api_key else {}


class Darkroom:
    """A blocking client. Calls raise Refused or Unreachable. Safe to share between threads."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        *,
        token: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        tries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = credentials(token, api_key)
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=timeout_s, transport=transport)
        self._tries = tries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self,
        source: Source,
        *,
        bucket: str = "default",
        metadata: Mapping[str, JsonValue] | None = None,
        filename: str | None = None,
        lane: Lane = Lane.INTERACTIVE,
        on_duplicate: OnDuplicate = "new",
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Send an image, or have one fetched. When this returns, the image will be carried to its end.

        In the bulk lane it waits behind whatever somebody waits for; many interactive images a minute go there too.
        With `on_duplicate="reuse"` the answer is the image the same bytes were made into before, if there is one.
        Whoever may come back after a crash gives the key themselves: the same one for the same submission.
        """
        return self._ask(
            endpoints.submission(source, bucket, metadata, filename, lane, on_duplicate, idempotency_key), Submitted
        )

    def status(self, job_id: str) -> JobStatus:
        """Return where a job stands."""
        return self._ask(endpoints.job(job_id), JobStatus)

    def result(self, job_id: str) -> JobResult:
        """Return what a job found. Refused with `not-finished` until it has ended."""
        return self._ask(endpoints.job(job_id, "/result"), JobResult)

    def wait(self, job_id: str, *, timeout_s: float = 120.0) -> JobResult:
        """Wait until a job has ended, however it ended, and return its result. Raises NotFinished."""
        deadline, pause = time.monotonic() + timeout_s, FIRST_POLL_S
        while (status := self.status(job_id)).status is ImageState.PROCESSING:
            if time.monotonic() + pause > deadline:
                raise NotFinished(status, timeout_s)
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_POLL_S)
        return self.result(job_id)

    def sizes(self, image_id: str) -> ImageSizes:
        """Return every size of an image."""
        return self._ask(endpoints.image(image_id, "/all"), ImageSizes)

    def batch(self, image_ids: list[str], *, size: str = "medium") -> ImageBatch:
        """Return up to 50 images in one size, and why others are not there."""
        return self._ask(endpoints.image("batch", size=size, image_ids=",".join(image_ids)), ImageBatch)

    def search(self, query: str, *, limit: int | None = None) -> SearchAnswer:
        """Find images by meaning, text and labels."""
        return self._ask(endpoints.search(query, limit), SearchAnswer)

    def search_like(self, image: Source, *, limit: int | None = None) -> SearchAnswer:
        """Find images like one: an image id, a path, or bytes."""
        return self._ask(endpoints.likeness(image, limit), SearchAnswer)

    def images(self, *, page_size: int | None = None, cursor: str | None = None, **filters: Any) -> ImagePage:
        """Return a page of your images, newest first; the next one with its `next_cursor` and the same filters.

        Filters: state, bucket, label, tag, category, since, until, text, order.
        """
        return self._ask(endpoints.listing({**filters, "page_size": page_size, "cursor": cursor}), ImagePage)

    def details(self, image_id: str) -> ImageDetails:
        """Return what is known of an image."""
        return self._ask(endpoints.image(image_id, "/metadata"), ImageDetails)

    def annotate(self, image_id: str, **changes: Any) -> ImageDetails:
        """Change tags, category or context: `annotate(image_id, tags=["beach"], category=None)`. None takes away."""
        return self._ask(replace(endpoints.image(image_id, method="PATCH"), json=changes), ImageDetails)

    def delete(self, image_id: str) -> DeletionSubmitted:
        """Delete an image: hidden when this returns, gone when the job has ended."""
        return self._ask(endpoints.image(image_id, method="DELETE"), DeletionSubmitted)

    def erasure(self, image_id: str) -> ErasureView:
        """Return what a deletion has removed, and what is still stored of the image right now."""
        return self._ask(endpoints.image(image_id, "/erasure"), ErasureView)

    def download(self, image_id: str, *, size: str = "medium") -> bytes:
        """Return the bytes of one size; from the object store itself, where the server links to that."""
        answer = self._send(endpoints.image(image_id, "/direct", size=size))
        if link := endpoints.link(answer):
            # Nobody there knows our key.
            with endpoints.reaching(link), httpx.Client(timeout=self._http.timeout) as outside:
                answer = outside.get(link)
        return endpoints.content(answer)

    def save(self, image_id: str, path: str | Path, *, size: str = "medium") -> Path:
        """Write the bytes of one size to a file, whole or not at all; return its path."""
        return _write(Path(path), self.download(image_id, size=size))

    def health(self) -> Health:
        """Return how the system does."""
        return self._ask(endpoints.Endpoint("GET", f"{endpoints.API}/health"), Health)

    def _ask(self, call: endpoints.Endpoint, kind: type[M]) -> M:
        return kind.model_validate_json(self._send(call).content)

    def _send(self, call: endpoints.Endpoint) -> httpx.Response:
        for attempt in range(self._tries):
            try:
                with call.arguments() as arguments:
                    response = self._http.request(**arguments)
            except httpx.TransportError as error:
                if call.key is not None and attempt + 1 < self._tries:
                    time.sleep(endpoints.pause(None, attempt))
                    continue
                raise Unreachable(f"{self._http.base_url}: {error or type(error).__name__}") from error
            if response.is_success or endpoints.link(response):
                return response
            if not endpoints.is_worth_another_try(response, call) or attempt + 1 == self._tries:
                break
            time.sleep(endpoints.pause(response, attempt))
        raise endpoints.refusal(response)


class AsyncDarkroom:
    """The same for asyncio."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        *,
        token: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        tries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = credentials(token, api_key)
        self._http = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=timeout_s, transport=transport)
        self._tries = tries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(
        self,
        source: Source,
        *,
        bucket: str = "default",
        metadata: Mapping[str, JsonValue] | None = None,
        filename: str | None = None,
        lane: Lane = Lane.INTERACTIVE,
        on_duplicate: OnDuplicate = "new",
        idempotency_key: str | None = None,
    ) -> Submitted:
        """See Darkroom.submit."""
        return await self._ask(
            endpoints.submission(source, bucket, metadata, filename, lane, on_duplicate, idempotency_key), Submitted
        )

    async def status(self, job_id: str) -> JobStatus:
        """See Darkroom.status."""
        return await self._ask(endpoints.job(job_id), JobStatus)

    async def result(self, job_id: str) -> JobResult:
        """See Darkroom.result."""
        return await self._ask(endpoints.job(job_id, "/result"), JobResult)

    async def wait(self, job_id: str, *, timeout_s: float = 120.0) -> JobResult:
        """See Darkroom.wait."""
        deadline, pause = time.monotonic() + timeout_s, FIRST_POLL_S
        while (status := await self.status(job_id)).status is ImageState.PROCESSING:
            if time.monotonic() + pause > deadline:
                raise NotFinished(status, timeout_s)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_POLL_S)
        return await self.result(job_id)

    async def sizes(self, image_id: str) -> ImageSizes:
        """See Darkroom.sizes."""
        return await self._ask(endpoints.image(image_id, "/all"), ImageSizes)

    async def batch(self, image_ids: list[str], *, size: str = "medium") -> ImageBatch:
        """See Darkroom.batch."""
        return await self._ask(endpoints.image("batch", size=size, image_ids=",".join(image_ids)), ImageBatch)

    async def search(self, query: str, *, limit: int | None = None) -> SearchAnswer:
        """See Darkroom.search."""
        return await self._ask(endpoints.search(query, limit), SearchAnswer)

    async def search_like(self, image: Source, *, limit: int | None = None) -> SearchAnswer:
        """See Darkroom.search_like."""
        return await self._ask(endpoints.likeness(image, limit), SearchAnswer)

    async def images(self, *, page_size: int | None = None, cursor: str | None = None, **filters: Any) -> ImagePage:
        """See Darkroom.images."""
        return await self._ask(endpoints.listing({**filters, "page_size": page_size, "cursor": cursor}), ImagePage)

    async def details(self, image_id: str) -> ImageDetails:
        """See Darkroom.details."""
        return await self._ask(endpoints.image(image_id, "/metadata"), ImageDetails)

    async def annotate(self, image_id: str, **changes: Any) -> ImageDetails:
        """See Darkroom.annotate."""
        return await self._ask(replace(endpoints.image(image_id, method="PATCH"), json=changes), ImageDetails)

    async def delete(self, image_id: str) -> DeletionSubmitted:
        """See Darkroom.delete."""
        return await self._ask(endpoints.image(image_id, method="DELETE"), DeletionSubmitted)

    async def erasure(self, image_id: str) -> ErasureView:
        """See Darkroom.erasure."""
        return await self._ask(endpoints.image(image_id, "/erasure"), ErasureView)

    async def download(self, image_id: str, *, size: str = "medium") -> bytes:
        """See Darkroom.download."""
        answer = await self._send(endpoints.image(image_id, "/direct", size=size))
        if link := endpoints.link(answer):
            with endpoints.reaching(link):
                async with httpx.AsyncClient(timeout=self._http.timeout) as outside:
                    answer = await outside.get(link)
        return endpoints.content(answer)

    async def save(self, image_id: str, path: str | Path, *, size: str = "medium") -> Path:
        """See Darkroom.save."""
        return await asyncio.to_thread(_write, Path(path), await self.download(image_id, size=size))

    async def health(self) -> Health:
        """See Darkroom.health."""
        return await self._ask(endpoints.Endpoint("GET", f"{endpoints.API}/health"), Health)

    async def _ask(self, call: endpoints.Endpoint, kind: type[M]) -> M:
        return kind.model_validate_json((await self._send(call)).content)

    async def _send(self, call: endpoints.Endpoint) -> httpx.Response:
        for attempt in range(self._tries):
            try:
                with call.arguments() as arguments:
                    response = await self._http.request(**arguments)
            except httpx.TransportError as error:
                if call.key is not None and attempt + 1 < self._tries:
                    await asyncio.sleep(endpoints.pause(None, attempt))
                    continue
                raise Unreachable(f"{self._http.base_url}: {error or type(error).__name__}") from error
            if response.is_success or endpoints.link(response):
                return response
            if not endpoints.is_worth_another_try(response, call) or attempt + 1 == self._tries:
                break
            await asyncio.sleep(endpoints.pause(response, attempt))
        raise endpoints.refusal(response)


def _write(path: Path, data: bytes) -> Path:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    return part.replace(path)
