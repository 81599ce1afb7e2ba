"""Requests with an Idempotency-Key: a retry gets the same answer and has no further effect."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from agents.maintenance.expired_idempotency_keys import ExpiredKeys
from gateway.access.identity import Identity, Scope
from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.limits.rate_limits import Limits
from gateway.limits.settings import RateLimitSettings
from schemas.events.envelope import Event
from schemas.http.submissions import Submitted
from schemas.stored.idempotency import IDEMPOTENCY, Attempt
from schemas.values import Owner
from streams.errors import DeliveryUnconfirmed, DependencyUnavailable
from streams.object_store.factory import open_files
from streams.settings import FilesSettings
from streams.topics import Topic
from tests.support.gateway_components import (
    JPEG,
    UPLOAD,
    FaultyFiles,
    Sink,
    StubReadiness,
    client_of,
    refused,
    settings,
)

FETCH = "/api/v1/images/fetch"
KEY = {"Idempotency-Key": '"7a3c"'}


@dataclass
class Named:
    """An authenticator that trusts the x-owner header."""

    async def identify(self, request: Any) -> Identity:
        return Identity(Owner(request.headers.get("x-owner", "default")), frozenset(Scope), "test")


@dataclass
class Gated(Sink):
    """A sink that signals a call and blocks it until released."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        self.asked.set()
        await self.release.wait()
        await super().send(topic, event, traceparent=traceparent, bulk=bulk)


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    async with open_files(FilesSettings(directory=tmp_path)) as found:
        yield FaultyFiles(found)


@pytest.fixture
def sink() -> Sink:
    return Sink()


def app_of(files: FaultyFiles, sink: Sink, **changes: object) -> Any:
    parts = IngestComponents(files=files, events=sink, readiness=StubReadiness(), authenticator=Named())
    return ingest_app(settings(**changes), parts)


@pytest.fixture
async def client(files: FaultyFiles, sink: Sink) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app_of(files, sink)) as found:
        yield found


async def upload(client: httpx.AsyncClient, image: bytes = JPEG, **more: Any) -> httpx.Response:
    headers = {**KEY, **more.pop("headers", {})}
    return await client.post(UPLOAD, files={"file": ("cat.jpg", image)}, headers=headers, **more)


async def attempts(files: FaultyFiles) -> list[tuple[str, Attempt]]:
    keys = [info.key async for info in files.list(IDEMPOTENCY)]
    return [(key, Attempt.model_validate_json(await files.get(key))) for key in keys]


async def simulate_crash(files: FaultyFiles) -> None:
    """Leave the attempts of a gateway that crashed before it answered, with expired leases."""
    for key, attempt in await attempts(files):
        died = attempt.model_copy(update={"status": None, "answer": None, "lease_until": 0.0})
        await files.put(key, died.model_dump_json().encode(), content_type="application/json")


async def test_a_retried_upload_is_answered_from_the_first(client: httpx.AsyncClient, sink: Sink) -> None:
    """The same key and request: the same body, marked as replayed, and one event."""
    first, again = await upload(client), await upload(client)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.content == again.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert len(sink.sent) == 1


async def test_a_replayed_answer_does_not_count_against_the_limit(files: FaultyFiles, sink: Sink) -> None:
    """A retried upload or batch leaves the owner's rate limit unchanged."""
    limits = Limits(RateLimitSettings(uploads="5/hour"))
    parts = IngestComponents(files=files, events=sink, readiness=StubReadiness(), limits=limits)
    async with client_of(ingest_app(settings(), parts)) as client:
        for name, count, left in (("file", 1, "4"), ("files", 2, "2")):
            path = UPLOAD if name == "file" else "/api/v1/images/batch"
            sent = [(name, (f"{at}.jpg", JPEG + bytes([at]))) for at in range(count)]
            answers = [await client.post(path, files=sent, headers={"Idempotency-Key": f'"{name}"'}) for _ in range(2)]
            assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true"]
            assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == [left, left]


async def test_a_retried_fetch_is_not_fetched_again(client: httpx.AsyncClient, sink: Sink) -> None:
    """A fetch with the same key and fields, in any order, is replayed."""
    url = "https://example.org/cat.jpg"
    first = await client.post(FETCH, json={"url": url, "metadata": {"a": 1, "b": 2}}, headers=KEY)
    again = await client.post(FETCH, json={"metadata": {"b": 2, "a": 1}, "url": url}, headers=KEY)
    assert first.json() == again.json()
    assert len(sink.sent) == 1


async def test_the_layout_of_a_form_does_not_matter(client: httpx.AsyncClient, sink: Sink) -> None:
    """The fingerprint is of the content: other part order and another boundary are the same request."""
    bodies = []
    for boundary, order in (("x", (0, 1)), ("another", (1, 0))):
        parts = (
            b'Content-Disposition: form-data; name="bucket"\r\n\r\npets\r\n',
            b'Content-Disposition: form-data; name="file"; filename="cat.jpg"\r\n\r\n' + JPEG + b"\r\n",
        )
        mark = boundary.encode()
        body = b"".join(b"--" + mark + b"\r\n" + parts[at] for at in order) + b"--" + mark + b"--\r\n"
        headers = {"content-type": f"multipart/form-data; boundary={boundary}", **KEY}
        bodies.append((await client.post(UPLOAD, content=body, headers=headers)).json())
    assert bodies[0] == bodies[1]
    assert len(sink.sent) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"image": JPEG + b"x"},
        {"data": {"bucket": "pets"}},
        {"data": {"metadata": '{"a": 1}'}},
        {"data": {"tags": "cat"}},
        {"data": {"lane": "bulk"}},
    ],
    ids=["bytes", "bucket", "metadata", "tags", "lane"],
)
async def test_a_key_belongs_to_one_request(client: httpx.AsyncClient, sink: Sink, other: dict[str, Any]) -> None:
    """The same key with other bytes or fields is rejected with 422, and nothing is accepted."""
    assert (await upload(client)).status_code == 202
    answer = await upload(client, **other)
    refused(answer, 422, "idempotency-key-reused")
    assert len(sink.sent) == 1


async def test_a_key_belongs_to_one_endpoint(client: httpx.AsyncClient) -> None:
    """The endpoint is part of the request: a key of an upload is rejected for a fetch."""
    assert (await upload(client)).status_code == 202
    answer = await client.post(FETCH, json={"url": "https://example.org/a"}, headers=KEY)
    refused(answer, 422, "idempotency-key-reused")


async def test_keys_are_per_owner(client: httpx.AsyncClient, sink: Sink) -> None:
    """Two owners may use the same key independently."""
    mine = await upload(client)
    theirs = await upload(client, JPEG + b"theirs", headers={"x-owner": "somebody"})
    assert theirs.status_code == 202
    assert mine.json()["image_id"] != theirs.json()["image_id"]
    assert len(sink.sent) == 2


async def test_a_concurrent_request_with_the_same_key_is_409(files: FaultyFiles) -> None:
    """Of two concurrent requests with the same key one is processed; the other is 409 with Retry-After."""
    sink = Gated()
    async with client_of(app_of(files, sink)) as client:
        first = asyncio.create_task(upload(client))
        await sink.asked.wait()
        problem = await upload(client)
        refused(problem, 409, "idempotency-key-in-use")
        assert 1 <= int(problem.headers["retry-after"]) <= 15
        sink.release.set()
        assert (await upload(client)).status_code in (202, 409)  # as soon as it is written down
        done = await first
        assert (await upload(client)).json() == done.json()
    assert len(sink.sent) == 1


async def test_the_lease_is_renewed_during_the_work(files: FaultyFiles) -> None:
    """Work that takes longer than a lease keeps its key: the lease is renewed before it expires."""
    sink = Gated()
    async with client_of(app_of(files, sink, idempotency_lease_s=4.0)) as client:
        first = asyncio.create_task(upload(client))
        await sink.asked.wait()
        ((_, begun),) = await attempts(files)
        while (await attempts(files))[0][1].lease_until == begun.lease_until:
            await asyncio.sleep(0.05)
        refused(await upload(client), 409, "idempotency-key-in-use")
        sink.release.set()
        assert (await first).status_code == 202
    assert len(sink.sent) == 1


@pytest.mark.parametrize("accepted", [False, True], ids=["before the event", "after the event"])
async def test_after_a_gateway_crash_the_same_image_is_continued(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink, accepted: bool
) -> None:
    """A retry after the lease uses the crashed gateway's image id: one image, whether or not it was accepted."""
    first = await upload(client)
    image_id = first.json()["image_id"]
    await simulate_crash(files)
    if not accepted:
        for receipt in await files.receipts():
            await files.delete(receipt)
        sink.sent.clear()
    again = await upload(client)
    assert again.status_code == 202
    assert again.json()["image_id"] == image_id
    assert {event.image_id for _, event in sink.sent} == {image_id}
    assert len({event.id for _, event in sink.sent}) == 1, "the same event, however often it is sent"
    assert [key for key in await files.receipts() if image_id not in key] == []
    assert (await upload(client)).headers["idempotency-replayed"] == "true"


async def test_of_concurrent_retries_after_a_crash_one_continues(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """Ten concurrent retries after a crash: one image; the others are 409 or get its answer."""
    image_id = (await upload(client)).json()["image_id"]
    await simulate_crash(files)
    answers = await asyncio.gather(*(upload(client) for _ in range(10)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert {answer.json()["image_id"] for answer in answers if answer.status_code == 202} == {image_id}
    assert {event.image_id for _, event in sink.sent} == {image_id}


async def test_an_image_with_a_tombstone_is_not_continued(files: FaultyFiles, sink: Sink) -> None:
    """If Kafka did not confirm and the gateway crashed, a retry creates an image with another id."""

    class Unsure(Sink):
        async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
            raise DeliveryUnconfirmed("Kafka did not answer in time")

    async with client_of(app_of(files, sink)) as client:
        lost = (await upload(client)).json()["image_id"]
    await simulate_crash(files)
    async with client_of(app_of(files, Unsure())) as client:
        refused(await upload(client, headers={"Idempotency-Key": '"other"'}), 503, "dependency-unavailable")
    erased = [info.key async for info in files.list("erasures/")]
    assert len(erased) == 1, "the second key's image was disowned"
    disowned = erased[0].split("/")[1].removesuffix(".json")
    ((key, attempt),) = await attempts(files)
    broken = attempt.model_copy(update={"image_ids": (disowned,)})
    await files.put(key, broken.model_dump_json().encode(), content_type="application/json")
    async with client_of(app_of(files, sink)) as client:
        answer = await upload(client)
    assert answer.status_code == 202
    assert answer.json()["image_id"] not in (disowned, lost)


async def test_a_rejected_request_may_be_retried(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink) -> None:
    """A 503 stores no key: a retry is accepted once Kafka is available."""
    sink.unavailable = True
    refused(await upload(client), 503, "dependency-unavailable")
    assert await attempts(files) == []
    sink.unavailable = False
    assert (await upload(client)).status_code == 202
    assert len(sink.sent) == 1


async def test_without_the_store_a_request_with_a_key_is_503(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """If keys cannot be read, a request with a key is 503, and nothing is accepted."""
    files.unavailable = True
    refused(await upload(client), 503, "dependency-unavailable")
    assert not sink.sent


async def test_an_answer_that_cannot_be_stored_is_still_sent(files: FaultyFiles) -> None:
    """The image is accepted and answered although the store failed before the answer was stored."""

    class Leaving(Sink):
        async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
            await super().send(topic, event, traceparent=traceparent, bulk=bulk)
            files.unavailable = True

    async with client_of(app_of(files, Leaving())) as client:
        answer = await upload(client)
    assert answer.status_code == 202


async def test_an_expired_key_may_be_used_again(files: FaultyFiles, sink: Sink) -> None:
    """An expired key is free: another request with it is processed."""
    async with client_of(app_of(files, sink, idempotency_expiry_s=0.001)) as client:
        assert (await upload(client)).status_code == 202
        await asyncio.sleep(0.002)
        assert (await upload(client, JPEG + b"x")).status_code == 202
    assert len(sink.sent) == 2


@pytest.mark.parametrize(
    "key",
    ['"', '""', '"a', "a b", "1.5", "?1", ":YQ==:", "(1 2)", '"a", "b"', '"' + "x" * 256 + '"', "x" * 256, '"é"'],
)
async def test_a_malformed_key_is_rejected(client: httpx.AsyncClient, sink: Sink, key: str) -> None:
    """A malformed, empty or too long key is rejected with 400 before anything is stored."""
    answer = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}, headers=[(b"Idempotency-Key", key.encode())])
    if key == "1.5":  # a bare word, as many clients send it
        assert answer.status_code == 202
        return
    refused(answer, 400, "invalid-idempotency-key")
    assert not sink.sent


async def test_a_bare_key_is_the_same_as_the_quoted_one(client: httpx.AsyncClient, sink: Sink) -> None:
    """A UUID may be sent with or without quotes: it is one key."""
    key = "8e03978e-40d5-43dd-bc93-6894a57f9324"
    first = await upload(client, headers={"Idempotency-Key": key})
    again = await upload(client, headers={"Idempotency-Key": f'"{key}"'})
    assert first.json() == again.json()
    assert len(sink.sent) == 1


async def test_a_stored_attempt_contains_no_key_and_no_request(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """The stored attempt has neither the key nor the request's fields, only hashes and the answer."""
    answer = await upload(client, data={"metadata": '{"name": "Ada"}'}, headers={"Idempotency-Key": "secret-key"})
    ((key, attempt),) = await attempts(files)
    assert key == f"{IDEMPOTENCY}default/{hashlib.sha256(b'secret-key').hexdigest()}/000001.json"
    text = attempt.model_dump_json()
    assert "secret-key" not in text
    assert "Ada" not in text
    assert attempt.answer == Submitted.model_validate_json(answer.content).model_dump(mode="json")


async def test_the_janitor_removes_expired_keys(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """The janitor removes expired keys only, up to the page size per sweep, and none in a dry run."""
    for name in ("a", "b", "c"):
        await upload(client, headers={"Idempotency-Key": name})
    expiries = sorted(attempt.expires_at for _, attempt in await attempts(files))
    keys = ExpiredKeys(files)
    assert await keys.remove(now=expiries[-1] + 1, page_size=10, dry_run=True) == 3
    assert await keys.remove(now=expiries[0] - 1, page_size=10, dry_run=False) == 0
    assert [await keys.remove(now=expiries[-1] + 1, page_size=2, dry_run=False) for _ in range(2)] == [2, 1]
    assert await attempts(files) == []


async def test_a_sweep_fails_without_the_store(files: FaultyFiles) -> None:
    """A sweep raises DependencyUnavailable while the store is unavailable."""
    files.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await ExpiredKeys(files).remove(now=0.0, page_size=1, dry_run=False)
