"""Retries of the Python client: submissions, with the same Idempotency-Key, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from gateway.client import AsyncDarkroom, Darkroom, Refused, Unreachable, exchange
from schemas.http.problems import ProblemBody
from schemas.http.submissions import Submitted
from tests.support.gateway_components import BASE, JPEG

ACCEPTED = Submitted(job_id="i.1", image_id="i", status_url=f"{BASE}/s", result_url=f"{BASE}/r")


@dataclass
class Server:
    """Responds from a list, in order; records the requests."""

    answers: Iterator[httpx.Response | Exception]
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def keys(self) -> list[str | None]:
        """The Idempotency-Key of each request."""
        return [request.headers.get("idempotency-key") for request in self.requests]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "LONGEST_PAUSE_S", 0.0)


def accepted() -> httpx.Response:
    return httpx.Response(202, content=ACCEPTED.model_dump_json())


def problem(status: int, code: str) -> httpx.Response:
    body = ProblemBody(
        type=f"urn:darkroom:problem:{code}", code=code, title=code, status=status, detail="d", instance="/"
    )
    return httpx.Response(status, content=body.model_dump_json(), headers={"retry-after": "1"})


def blocking(server: Server, work: Callable[[Darkroom], Submitted]) -> Submitted:
    with Darkroom(BASE, transport=httpx.MockTransport(server)) as darkroom:
        return work(darkroom)


BROKEN = (httpx.ReadError("reset"), httpx.RemoteProtocolError("closed"), httpx.ReadTimeout("late"))


def test_a_submission_is_retried_with_its_key_after_a_broken_connection() -> None:
    """Three tries of one submission have one key, and the file each time; another submission has another key."""
    server = Server(iter([BROKEN[0], BROKEN[1], accepted(), accepted()]))
    assert blocking(server, lambda darkroom: darkroom.submit(JPEG)) == ACCEPTED
    blocking(server, lambda darkroom: darkroom.submit(JPEG))
    assert len(set(server.keys[:3])) == 1
    assert server.keys[0] != server.keys[3]
    assert all(JPEG in request.read() for request in server.requests)


def test_both_clients_retry() -> None:
    """The asyncio client retries a broken connection and a 409 in-use with one key."""
    server = Server(iter([BROKEN[2], problem(409, "idempotency-key-in-use"), accepted()]))

    async def submit() -> Submitted:
        async with AsyncDarkroom(BASE, transport=httpx.MockTransport(server)) as darkroom:
            return await darkroom.submit("https://example.org/cat.jpg", idempotency_key="mine")

    assert asyncio.run(submit()) == ACCEPTED
    assert server.keys == ['"mine"'] * 3


def test_the_last_try_raises() -> None:
    """After three tries the client raises Unreachable for broken connections, and Refused for a 409 in-use."""
    server = Server(iter(BROKEN))
    with pytest.raises(Unreachable):
        blocking(server, lambda darkroom: darkroom.submit(JPEG))
    assert len(server.requests) == 3
    server = Server(iter([problem(409, "idempotency-key-in-use")] * 3))
    with pytest.raises(Refused, match="in-use"):
        blocking(server, lambda darkroom: darkroom.submit(JPEG))
    assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "code"), [(422, "idempotency-key-reused"), (409, "not-finished"), (400, "x")])
def test_a_permanent_error_is_not_retried(status: int, code: str) -> None:
    """An error that a retry would not change is raised at once."""
    server = Server(iter([problem(status, code)]))
    with pytest.raises(Refused, match=code):
        blocking(server, lambda darkroom: darkroom.submit(JPEG))
    assert len(server.requests) == 1


def test_a_request_without_a_key_is_not_retried() -> None:
    """A deletion is not retried after a broken connection."""
    server = Server(iter([BROKEN[0]]))
    with Darkroom(BASE, transport=httpx.MockTransport(server)) as darkroom, pytest.raises(Unreachable):
        darkroom.delete("i")
    assert server.keys == [None]


def test_on_duplicate_is_for_uploads_only() -> None:
    """on_duplicate is a form field; with a URL it is refused before anything is sent."""
    server = Server(iter([accepted(), accepted()]))
    blocking(server, lambda darkroom: darkroom.submit(JPEG, on_duplicate="reuse"))
    blocking(server, lambda darkroom: darkroom.submit(JPEG))
    bodies = [request.read() for request in server.requests]
    assert [b"on_duplicate" in body for body in bodies] == [True, False]
    with pytest.raises(ValueError, match="only uploads"):
        blocking(server, lambda darkroom: darkroom.submit("https://example.org/a", on_duplicate="reuse"))


@pytest.mark.parametrize("key", ["é", "a\nb", "\x00"])
def test_an_invalid_key_is_refused_by_the_client(key: str) -> None:
    """Characters that a header cannot have are refused before anything is sent; quotes and backslashes are escaped."""
    server = Server(iter([accepted()]))
    with pytest.raises(ValueError, match="ASCII"):
        blocking(server, lambda darkroom: darkroom.submit(JPEG, idempotency_key=key))
    assert not server.requests
    blocking(server, lambda darkroom: darkroom.submit(JPEG, idempotency_key='a"\\b'))
    assert server.keys == ['"a\\"\\\\b"']
