"""The calls of the Python client: requests before they are sent, and what their answers say; blocking or not."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote

import httpx
from pydantic import JsonValue, ValidationError

from schemas.http.problems import ProblemBody
from schemas.values import Lane

Source = str | Path | bytes
"""An image: a path, the bytes themselves, or (a str that begins with http:// or https://) a URL to be fetched."""

OnDuplicate = Literal["new", "reuse"]
"""What happens to bytes you have submitted before."""

API = "/api/v1"
LONGEST_PAUSE_S = 30.0  # between tries; what is refused for longer, as a limit per hour does, is told at once
AGAIN = frozenset({429, 503})  # the server says that nothing was accepted, and when to come back


class Refused(Exception):
    """The server refused. `code` is stable (schemas.http.problems.ProblemCode); `status` is the HTTP status."""

    def __init__(self, problem: ProblemBody, retry_after_s: float | None) -> None:
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")
        self.problem = problem
        self.code = problem.code
        self.status = problem.status
        self.retry_after_s = retry_after_s


class Unreachable(Exception):
    """The server could not be reached, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Endpoint:
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
            found["headers"] = {"Idempotency-Key": quoted(self.key)}
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


def submission(
    source: Source,
    bucket: str,
    metadata: Mapping[str, JsonValue] | None,
    filename: str | None,
    lane: Lane,
    on_duplicate: OnDuplicate,
    idempotency_key: str | None,
) -> Endpoint:
    """Return the call that hands in an image. Raises ValueError."""
    key = idempotency_key or str(uuid.uuid4())
    waits = {"lane": lane} if lane is Lane.BULK else {}  # a server that knows no lanes takes the others
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if on_duplicate == "reuse":
            raise ValueError("which bytes a URL has is not known before they are fetched: only uploads can be reused")
        asked = {"url": source, "bucket": bucket, "metadata": dict(metadata or {}), **waits}
        return Endpoint("POST", f"{API}/images/fetch", json=asked, key=key)
    form = {"bucket": bucket, "metadata": json.dumps(dict(metadata or {})), **waits}
    form |= {"on_duplicate": on_duplicate} if on_duplicate == "reuse" else {}
    file = source if isinstance(source, bytes) else Path(source)
    name = filename or (file.name if isinstance(file, Path) else None)
    return Endpoint("POST", f"{API}/images/upload", file=file, filename=name, form=form, key=key)


def quoted(key: str) -> str:
    """Return a key as a string of RFC 8941. Raises ValueError."""
    if not (key and key.isascii() and key.isprintable()):
        raise ValueError("an idempotency key has printable ASCII letters only")
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def likeness(image: Source, limit: int | None) -> Endpoint:
    """Return the call that searches images like another."""
    path = f"{API}/search/image"
    if isinstance(image, str) and not Path(image).is_file():
        return Endpoint("POST", path, json={"image_id": image} | ({"limit": limit} if limit else {}))
    file = image if isinstance(image, bytes) else Path(image)
    return Endpoint("POST", path, file=file, filename="query", form={"limit": str(limit)} if limit else {})


def search(query: str, limit: int | None) -> Endpoint:
    """Return the call that searches by words."""
    return Endpoint("GET", f"{API}/search", {"q": query} | ({"limit": limit} if limit else {}))


def job(job_id: str, end: str = "") -> Endpoint:
    """Return a call about a job."""
    return Endpoint("GET", f"{API}/images/jobs/{quote(job_id, safe='')}{end}")


def image(image_id: str, end: str = "", method: str = "GET", **params: str) -> Endpoint:
    """Return a call about an image."""
    return Endpoint(method, f"{API}/images/{quote(image_id, safe='')}{end}", params)


def listing(filters: Mapping[str, Any]) -> Endpoint:
    """Return the call that lists images."""
    return Endpoint("GET", f"{API}/images", {name: value for name, value in filters.items() if value is not None})


def link(response: httpx.Response) -> str | None:
    """Return where the bytes are, if the answer is a link to the store."""
    return response.headers.get("location") if response.status_code == 307 else None


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what httpx raises when there is no answer into Unreachable."""
    try:
        yield
    except httpx.TransportError as error:
        raise Unreachable(f"{httpx.URL(url).host}: {error or type(error).__name__}") from error


def content(response: httpx.Response) -> bytes:
    """Return the body of an answer. Raises Refused."""
    if not response.is_success:
        raise refusal(response)
    return response.content


def retry_after(response: httpx.Response) -> float | None:
    """Return how many seconds an answer asks to wait, None if it does not say."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None


def refusal(response: httpx.Response) -> Refused:
    """Return the error an answer is, also one that somebody between us and the server gave."""
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
    return Refused(problem, retry_after(response))


def is_worth_another_try(response: httpx.Response, call: Endpoint) -> bool:
    """Say whether the server may answer otherwise later: it is busy, or still at work on an earlier try of ours."""
    if response.status_code == 409 and call.key is not None:
        return refusal(response).code == "idempotency-key-in-use"
    asked = retry_after(response)
    if asked is None and response.status_code == 429:
        return False  # no time will come at which it fits
    return response.status_code in AGAIN and (asked or 0.0) <= LONGEST_PAUSE_S


def pause(response: httpx.Response | None, attempt: int) -> float:
    """Return how many seconds to wait before the next try."""
    asked = retry_after(response) if response is not None else None
    return min(asked or 0.5 * 2**attempt, LONGEST_PAUSE_S)
