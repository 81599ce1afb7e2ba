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
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, JsonValue, ValidationError

from schemas.http_api import (
    DeletionSubmitted,
    ErasureView,
    Health,
    ImageBatch,
    ImageSizes,
    JobResult,
    JobStatus,
    ProblemBody,
    SearchAnswer,
    Submitted,
)
from schemas.http_images import ImageDetails, ImagePage
from schemas.values import ImageState, Lane

M = TypeVar("M", bound=BaseModel)

Source = str | Path | bytes
"""An image: a path, the bytes themselves, or (a str that begins with http:// or https://) a URL to be fetched."""

OnDuplicate = Literal["new", "reuse"]
"""What happens to bytes you have submitted before."""

API = "/api/v1"
LONGEST_PAUSE_S = 30.0  # between tries; what is refused for longer, as a limit per hour does, is told at once
FIRST_POLL_S, LONGEST_POLL_S = 0.1, 2.0
AGAIN = frozenset({429, 503})  # the server says that nothing was accepted, and when to come back


class Refused(Exception):
    """The server refused. `code` is stable (schemas.http_api.ProblemCode); `status` is the HTTP status."""

    def __init__(self, problem: ProblemBody, retry_after_s: float | None) -> None:
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")
        self.problem = problem
        self.code = problem.code
        self.status = problem.status
        self.retry_after_s = retry_after_s


class Unreachable(Exception):
    """The server could not be reached, or did not answer in time."""


class NotFinished(TimeoutError):
    """The job had not ended when the time to wait was over; it goes on. `status` is the last one seen."""

    def __init__(self, status: JobStatus, timeout_s: float) -> None:
        super().__init__(f"job {status.job_id} has not ended after {timeout_s:g} s")
        self.status = status


@dataclass(frozen=True, slots=True)
class _Call:
    """One request, not yet sent; the same for both clients."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    file: Path | bytes | None = None
    filename: str | None = None
    form: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None  # makes it harmless to send it again, whatever became of it

    @contextmanager
    def arguments(self) -> Iterator[dict[str, Any]]:
        """Yield what httpx is called with; a file is open meanwhile, and is streamed."""
        found: dict[str, Any] = {"method": self.method, "url": self.path, "params": dict(self.params)}
        if self.json is not None:
            found["json"] = self.json
        if self.key is not None:
            found["headers"] = {"Idempotency-Key": _quoted(self.key)}
        if self.file is None:
            yield found
            return
        content: IO[bytes] | bytes = self.file.open("rb") if isinstance(self.file, Path) else self.file
        try:
            found["files"] = {"file": (self.filename or "image", content)}
            found["data"] = dict(self.form)
            yield found
        finally:
            if not isinstance(content, bytes):
                content.close()


def _submission(
    source: Source,
    bucket: str,
    metadata: Mapping[str, JsonValue] | None,
    filename: str | None,
    lane: Lane,
    on_duplicate: OnDuplicate,
    idempotency_key: str | None,
) -> _Call:
    key = idempotency_key or str(uuid.uuid4())
    waits = {"lane": lane} if lane is Lane.BULK else {}  # a server that knows no lanes takes the others
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if on_duplicate == "reuse":
            raise ValueError("which bytes a URL has is not known before they are fetched: only uploads can be reused")
        asked = {"url": source, "bucket": bucket, "metadata": dict(metadata or {}), **waits}
        return _Call("POST", f"{API}/images/fetch", json=asked, key=key)
    form = {"bucket": bucket, "metadata": json.dumps(dict(metadata or {})), **waits}
    form |= {"on_duplicate": on_duplicate} if on_duplicate == "reuse" else {}
    file = source if isinstance(source, bytes) else Path(source)
    name = filename or (file.name if isinstance(file, Path) else None)
    return _Call("POST", f"{API}/images/upload", file=file, filename=name, form=form, key=key)


def _quoted(key: str) -> str:
    """Return a key as a string of RFC 8941. Raises ValueError."""
    if not (key and key.isascii() and key.isprintable()):
        raise ValueError("an idempotency key has printable ASCII letters only")
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _likeness(image: Source, limit: int | None) -> _Call:
    path = f"{API}/search/image"
    if isinstance(image, str) and not Path(image).is_file():
        return _Call("POST", path, json={"image_id": image} | ({"limit": limit} if limit else {}))
    file = image if isinstance(image, bytes) else Path(image)
    return _Call("POST", path, file=file, filename="query", form={"limit": str(limit)} if limit else {})


def _search(query: str, limit: int | None) -> _Call:
    return _Call("GET", f"{API}/search", {"q": query} | ({"limit": limit} if limit else {}))


def _job(job_id: str, end: str = "") -> _Call:
    return _Call("GET", f"{API}/images/jobs/{quote(job_id, safe='')}{end}")


def _image(image_id: str, end: str = "", method: str = "GET", **params: str) -> _Call:
    return _Call(method, f"{API}/images/{quote(image_id, safe='')}{end}", params)


def _listing(filters: Mapping[str, Any]) -> _Call:
    return _Call("GET", f"{API}/images", {name: value for name, value in filters.items() if value is not None})


def _link(response: httpx.Response) -> str | None:
    return response.headers.get("location") if response.status_code == 307 else None


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise Unreachable(f"{httpx.URL(url).host}: {error or type(error).__name__}") from error


def _content(response: httpx.Response) -> bytes:
    if not response.is_success:
        raise _refusal(response)
    return response.content


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None


def _refusal(response: httpx.Response) -> Refused:
    try:
        problem = ProblemBody.model_validate_json(response.content)
    except ValidationError:  # somebody between us and the server
        problem = ProblemBody(
            type="about:blank",
            code="unknown",
            title=response.reason_phrase,
            status=response.status_code,
            detail=response.text[:500],
            instance=response.request.url.path,
        )
    return Refused(problem, _retry_after(response))


def _is_worth_another_try(response: httpx.Response, call: _Call) -> bool:
    """Say whether the server may answer otherwise later: it is busy, or still at work on an earlier try of ours."""
    if response.status_code == 409 and call.key is not None:
        return _refusal(response).code == "idempotency-key-in-use"
    asked = _retry_after(response)
    if asked is None and response.status_code == 429:
        return False  # no time will come at which it fits
    return response.status_code in AGAIN and (asked or 0.0) <= LONGEST_PAUSE_S


def _pause(response: httpx.Response | None, attempt: int) -> float:
    asked = _retry_after(response) if response is not None else None
    return min(asked or 0.5 * 2**attempt, LONGEST_PAUSE_S)


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
            _submission(source, bucket, metadata, filename, lane, on_duplicate, idempotency_key), Submitted
        )

    def status(self, job_id: str) -> JobStatus:
        """Return where a job stands."""
        return self._ask(_job(job_id), JobStatus)

    def result(self, job_id: str) -> JobResult:
        """Return what a job found. Refused with `not-finished` until it has ended."""
        return self._ask(_job(job_id, "/result"), JobResult)

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
        return self._ask(_image(image_id, "/all"), ImageSizes)

    def batch(self, image_ids: list[str], *, size: str = "medium") -> ImageBatch:
        """Return up to 50 images in one size, and why others are not there."""
        return self._ask(_image("batch", size=size, image_ids=",".join(image_ids)), ImageBatch)

    def search(self, query: str, *, limit: int | None = None) -> SearchAnswer:
        """Find images by meaning, text and labels."""
        return self._ask(_search(query, limit), SearchAnswer)

    def search_like(self, image: Source, *, limit: int | None = None) -> SearchAnswer:
        """Find images like one: an image id, a path, or bytes."""
        return self._ask(_likeness(image, limit), SearchAnswer)

    def images(self, *, page_size: int | None = None, cursor: str | None = None, **filters: Any) -> ImagePage:
        """Return a page of your images, newest first; the next one with its `next_cursor` and the same filters.

        Filters: state, bucket, label, tag, category, since, until, text, order.
        """
        return self._ask(_listing({**filters, "page_size": page_size, "cursor": cursor}), ImagePage)

    def details(self, image_id: str) -> ImageDetails:
        """Return what is known of an image."""
        return self._ask(_image(image_id, "/metadata"), ImageDetails)

    def annotate(self, image_id: str, **changes: Any) -> ImageDetails:
        """Change tags, category or context: `annotate(image_id, tags=["beach"], category=None)`. None takes away."""
        return self._ask(replace(_image(image_id, method="PATCH"), json=changes), ImageDetails)

    def delete(self, image_id: str) -> DeletionSubmitted:
        """Delete an image: hidden when this returns, gone when the job has ended."""
        return self._ask(_image(image_id, method="DELETE"), DeletionSubmitted)

    def erasure(self, image_id: str) -> ErasureView:
        """Return what a deletion has removed, and what is still stored of the image right now."""
        return self._ask(_image(image_id, "/erasure"), ErasureView)

    def download(self, image_id: str, *, size: str = "medium") -> bytes:
        """Return the bytes of one size; from the object store itself, where the server links to that."""
        answer = self._send(_image(image_id, "/direct", size=size))
        if link := _link(answer):
            with _reaching(link), httpx.Client(timeout=self._http.timeout) as outside:  # nobody there knows our key
                answer = outside.get(link)
        return _content(answer)

    def save(self, image_id: str, path: str | Path, *, size: str = "medium") -> Path:
        """Write the bytes of one size to a file, whole or not at all; return its path."""
        return _write(Path(path), self.download(image_id, size=size))

    def health(self) -> Health:
        """Return how the system does."""
        return self._ask(_Call("GET", f"{API}/health"), Health)

    def _ask(self, call: _Call, kind: type[M]) -> M:
        return kind.model_validate_json(self._send(call).content)

    def _send(self, call: _Call) -> httpx.Response:
        for attempt in range(self._tries):
            try:
                with call.arguments() as arguments:
                    response = self._http.request(**arguments)
            except httpx.TransportError as error:
                if call.key is not None and attempt + 1 < self._tries:
                    time.sleep(_pause(None, attempt))
                    continue
                raise Unreachable(f"{self._http.base_url}: {error or type(error).__name__}") from error
            if response.is_success or _link(response):
                return response
            if not _is_worth_another_try(response, call) or attempt + 1 == self._tries:
                break
            time.sleep(_pause(response, attempt))
        raise _refusal(response)


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
            _submission(source, bucket, metadata, filename, lane, on_duplicate, idempotency_key), Submitted
        )

    async def status(self, job_id: str) -> JobStatus:
        """See Darkroom.status."""
        return await self._ask(_job(job_id), JobStatus)

    async def result(self, job_id: str) -> JobResult:
        """See Darkroom.result."""
        return await self._ask(_job(job_id, "/result"), JobResult)

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
        return await self._ask(_image(image_id, "/all"), ImageSizes)

    async def batch(self, image_ids: list[str], *, size: str = "medium") -> ImageBatch:
        """See Darkroom.batch."""
        return await self._ask(_image("batch", size=size, image_ids=",".join(image_ids)), ImageBatch)

    async def search(self, query: str, *, limit: int | None = None) -> SearchAnswer:
        """See Darkroom.search."""
        return await self._ask(_search(query, limit), SearchAnswer)

    async def search_like(self, image: Source, *, limit: int | None = None) -> SearchAnswer:
        """See Darkroom.search_like."""
        return await self._ask(_likeness(image, limit), SearchAnswer)

    async def images(self, *, page_size: int | None = None, cursor: str | None = None, **filters: Any) -> ImagePage:
        """See Darkroom.images."""
        return await self._ask(_listing({**filters, "page_size": page_size, "cursor": cursor}), ImagePage)

    async def details(self, image_id: str) -> ImageDetails:
        """See Darkroom.details."""
        return await self._ask(_image(image_id, "/metadata"), ImageDetails)

    async def annotate(self, image_id: str, **changes: Any) -> ImageDetails:
        """See Darkroom.annotate."""
        return await self._ask(replace(_image(image_id, method="PATCH"), json=changes), ImageDetails)

    async def delete(self, image_id: str) -> DeletionSubmitted:
        """See Darkroom.delete."""
        return await self._ask(_image(image_id, method="DELETE"), DeletionSubmitted)

    async def erasure(self, image_id: str) -> ErasureView:
        """See Darkroom.erasure."""
        return await self._ask(_image(image_id, "/erasure"), ErasureView)

    async def download(self, image_id: str, *, size: str = "medium") -> bytes:
        """See Darkroom.download."""
        answer = await self._send(_image(image_id, "/direct", size=size))
        if link := _link(answer):
            with _reaching(link):
                async with httpx.AsyncClient(timeout=self._http.timeout) as outside:
                    answer = await outside.get(link)
        return _content(answer)

    async def save(self, image_id: str, path: str | Path, *, size: str = "medium") -> Path:
        """See Darkroom.save."""
        return await asyncio.to_thread(_write, Path(path), await self.download(image_id, size=size))

    async def health(self) -> Health:
        """See Darkroom.health."""
        return await self._ask(_Call("GET", f"{API}/health"), Health)

    async def _ask(self, call: _Call, kind: type[M]) -> M:
        return kind.model_validate_json((await self._send(call)).content)

    async def _send(self, call: _Call) -> httpx.Response:
        for attempt in range(self._tries):
            try:
                with call.arguments() as arguments:
                    response = await self._http.request(**arguments)
            except httpx.TransportError as error:
                if call.key is not None and attempt + 1 < self._tries:
                    await asyncio.sleep(_pause(None, attempt))
                    continue
                raise Unreachable(f"{self._http.base_url}: {error or type(error).__name__}") from error
            if response.is_success or _link(response):
                return response
            if not _is_worth_another_try(response, call) or attempt + 1 == self._tries:
                break
            await asyncio.sleep(_pause(response, attempt))
        raise _refusal(response)


def _write(path: Path, data: bytes) -> Path:
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    return part.replace(path)
