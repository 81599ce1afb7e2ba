"""The Python client: `Darkroom`, and `AsyncDarkroom` for asyncio. Needs httpx and the wire models, nothing else.

    with Darkroom("http://127.0.0.1:8080", api_key="dk_…") as darkroom:
        job = darkroom.submit("cat.jpg", metadata={"album": "pets"})
        result = darkroom.wait(job.job_id, timeout_s=60)
        print(result.urls["thumbnail"], [found.label for found in result.objects or ()])

A 429 or 503 is retried after its Retry-After: the server guarantees that it accepted nothing. A submission whose
connection broke is retried too: it carries an Idempotency-Key, and the server makes one image of all tries. A gateway
on a loopback address may require no credentials.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from gateway.client.endpoints import Endpoints, OnDuplicate, Source
from gateway.client.exchange import (
    Answer,
    Refused,
    Request,
    Unreachable,
    is_retried,
    link,
    pause_s,
    reaching,
    read,
    refusal,
)
from schemas.http.jobs import JobResult, JobStatus
from schemas.values import ImageState

__all__ = ["AsyncDarkroom", "Darkroom", "NotFinished", "OnDuplicate", "Refused", "Source", "Unreachable", "credentials"]

FIRST_POLL_S, LONGEST_POLL_S = 0.1, 2.0


class NotFinished(TimeoutError):
    """The job did not end within the time to wait; it continues. `status` is the last one received."""

    def __init__(self, status: JobStatus, timeout_s: float) -> None:
        super().__init__(f"job {status.job_id} has not ended after {timeout_s:g} s")
        self.status = status


def credentials(token: str | None, api_key: str | None) -> dict[str, str]:
    """Return the headers of a token or an API key. Raises ValueError for both."""
    if token and api_key:
        raise ValueError("Pass a token or an API key, not both.")
    if token:
        return {"Authorization": f"Bearer {token}"}
    return {"X-API-Key": api_key} if api_key else {}


class Darkroom(Endpoints):
    """A blocking client. Methods raise Refused or Unreachable. Safe to share between threads."""

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

    def wait(self, job_id: str, *, timeout_s: float = 120.0) -> JobResult:
        """Wait until a job has ended, in any state, and return its result. Raises NotFinished."""
        deadline, pause = time.monotonic() + timeout_s, FIRST_POLL_S
        while (status := self.status(job_id)).status is ImageState.PROCESSING:
            if time.monotonic() + pause > deadline:
                raise NotFinished(status, timeout_s)
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_POLL_S)
        return self.result(job_id)

    def save(self, image_id: str, path: str | Path, *, size: str = "medium") -> Path:
        """Write the bytes of one size to a file, atomically; return its path."""
        return _write(Path(path), self.download(image_id, size=size))

    def _ask(self, build: Callable[[], Request], answer: type[Answer]) -> Answer:
        response = self._send(build())
        if url := link(response):
            # The object store must not receive the credentials.
            with reaching(url), httpx.Client(timeout=self._http.timeout) as store:
                response = store.get(url)
        return read(response, answer)

    def _send(self, request: Request) -> httpx.Response:
        for attempt in range(self._tries):
            try:
                with request.arguments() as arguments:
                    response = self._http.request(**arguments)
            except httpx.TransportError as error:
                if request.key is not None and attempt + 1 < self._tries:
                    time.sleep(pause_s(None, attempt))
                    continue
                raise Unreachable(f"{self._http.base_url}: {error or type(error).__name__}") from error
            if response.is_success or link(response):
                return response
            if not is_retried(response, request) or attempt + 1 == self._tries:
                break
            time.sleep(pause_s(response, attempt))
        raise refusal(response)


class AsyncDarkroom(Endpoints):
    """The client for asyncio: the same methods as coroutines."""

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

    async def wait(self, job_id: str, *, timeout_s: float = 120.0) -> JobResult:
        """See Darkroom.wait."""
        deadline, pause = time.monotonic() + timeout_s, FIRST_POLL_S
        while (status := await self.status(job_id)).status is ImageState.PROCESSING:
            if time.monotonic() + pause > deadline:
                raise NotFinished(status, timeout_s)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_POLL_S)
        return await self.result(job_id)

    async def save(self, image_id: str, path: str | Path, *, size: str = "medium") -> Path:
        """See Darkroom.save."""
        return await asyncio.to_thread(_write, Path(path), await self.download(image_id, size=size))

    async def _ask(self, build: Callable[[], Request], answer: type[Answer]) -> Answer:
        response = await self._send(build())
        if url := link(response):
            # The object store must not receive the credentials.
            with reaching(url):
                async with httpx.AsyncClient(timeout=self._http.timeout) as store:
                    response = await store.get(url)
        return read(response, answer)

    async def _send(self, request: Request) -> httpx.Response:
        for attempt in range(self._tries):
            try:
                with request.arguments() as arguments:
                    response = await self._http.request(**arguments)
            except httpx.TransportError as error:
                if request.key is not None and attempt + 1 < self._tries:
                    await asyncio.sleep(pause_s(None, attempt))
                    continue
                raise Unreachable(f"{self._http.base_url}: {error or type(error).__name__}") from error
            if response.is_success or link(response):
                return response
            if not is_retried(response, request) or attempt + 1 == self._tries:
                break
            await asyncio.sleep(pause_s(response, attempt))
        raise refusal(response)


def _write(path: Path, data: bytes) -> Path:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    return part.replace(path)
