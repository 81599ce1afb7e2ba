"""Requests before they are sent, and how their responses are read: what both clients share, without I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from schemas.http.problems import ProblemBody

Answer = TypeVar("Answer", bound=BaseModel | bytes)

LONGEST_PAUSE_S = 30.0  # between tries; a longer Retry-After, such as of an hourly limit, is raised at once
RETRIED = frozenset({429, 503})  # the server guarantees that it accepted nothing, and says when to retry


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
class Request:
    """One request, not yet sent."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    file: Path | bytes | None = None
    filename: str | None = None
    form: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None  # Idempotency-Key: the request may be repeated after a broken connection

    @contextmanager
    def arguments(self) -> Iterator[dict[str, Any]]:
        """Yield the arguments of httpx.Client.request. A file is open until exit and is streamed."""
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


def quoted(key: str) -> str:
    """Return a key as a string of RFC 8941. Raises ValueError."""
    if not (key and key.isascii() and key.isprintable()):
        raise ValueError("An idempotency key may have printable ASCII characters only.")
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read(response: httpx.Response, answer: type[Answer]) -> Answer:
    """Return the body as a model, or as bytes. Raises Refused."""
    if not response.is_success:
        raise refusal(response)
    if issubclass(answer, BaseModel):
        return answer.model_validate_json(response.content)
    return answer(response.content)


def link(response: httpx.Response) -> str | None:
    """Return the URL in the object store that a response redirects to, None for other responses."""
    return response.headers.get("location") if response.status_code == 307 else None


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Raise Unreachable for httpx's transport errors."""
    try:
        yield
    except httpx.TransportError as error:
        raise Unreachable(f"{httpx.URL(url).host}: {error or type(error).__name__}") from error


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of Retry-After, None without."""
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None


def refusal(response: httpx.Response) -> Refused:
    """Return the error of a response, also of one that a proxy gave."""
    try:
        problem = ProblemBody.model_validate_json(response.content)
    except ValidationError:  # of a proxy
        problem = ProblemBody(
            type="about:blank",
            code="unknown",
            title=response.reason_phrase,
            status=response.status_code,
            detail=response.text[:500],
            instance=response.request.url.path,
        )
    return Refused(problem, retry_after(response))


def is_retried(response: httpx.Response, request: Request) -> bool:
    """Return whether a repeated request may succeed: the server is busy, or still processes an earlier try."""
    if response.status_code == 409 and request.key is not None:
        return refusal(response).code == "idempotency-key-in-use"
    seconds = retry_after(response)
    if seconds is None and response.status_code == 429:
        return False  # the request exceeds the limit by itself
    return response.status_code in RETRIED and (seconds or 0.0) <= LONGEST_PAUSE_S


def pause_s(response: httpx.Response | None, attempt: int) -> float:
    """Return the seconds to wait before the next try; None for a broken connection."""
    seconds = retry_after(response) if response is not None else None
    return min(seconds or 0.5 * 2**attempt, LONGEST_PAUSE_S)
