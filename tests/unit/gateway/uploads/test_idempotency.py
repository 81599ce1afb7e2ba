"""Requests that carry an Idempotency-Key: sent again, they have the same answer, and make nothing twice."""

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
    """An authenticator that believes what it is told."""

    async def identify(self, request: Any) -> Identity:
        return Identity(Owner(request.headers.get("x-owner", "default")), frozenset(Scope), "test")


@dataclass
class Gated(Sink):
    """A sink that says when it was asked, and answers when it is let."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    let: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        self.asked.set()
        await self.let.wait()
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


async def has_died(files: FaultyFiles) -> None:
    """Leave what a gateway leaves that was killed before it answered, its lease over."""
    for key, attempt in await attempts(files):
        died = attempt.model_copy(update={"status": None, "answer": None, "lease_until": 0.0})
        await files.put(key, died.model_dump_json().encode(), content_type="application/json")


async def test_an_upload_sent_again_has_the_same_answer_and_makes_no_second_image(
    client: httpx.AsyncClient, sink: Sink
) -> None:
    """The same key and the same request: the same body, said to be replayed, and one event."""
    first, again = await upload(client), await upload(client)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.content == again.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert len(sink.sent) == 1


async def test_a_repeated_answer_costs_nothing_of_the_limit(files: FaultyFiles, sink: Sink) -> None:
    """An upload or batch that is sent again leaves its owner as many uploads as before."""
    limits = Limits(RateLimitSettings(uploads="5/hour"))
    parts = IngestComponents(files=files, events=sink, readiness=StubReadiness(), limits=limits)
    async with client_of(ingest_app(settings(), parts)) as client:
        for name, count, left in (("file", 1, "4"), ("files", 2, "2")):
            path = UPLOAD if name == "file" else "/api/v1/images/batch"
            sent = [(name, (f"{at}.jpg", JPEG + bytes([at]))) for at in range(count)]
            said = [await client.post(path, files=sent, headers={"Idempotency-Key": f'"{name}"'}) for _ in range(2)]
            assert [answer.headers.get("idempotency-replayed") for answer in said] == [None, "true"]
            assert [answer.headers["x-ratelimit-remaining"] for answer in said] == [left, left]


async def test_a_fetch_sent_again_is_not_fetched_again(client: httpx.AsyncClient, sink: Sink) -> None:
    """A fetch with the same key and the same words, in any order, is answered as before."""
    url = "https://example.org/cat.jpg"
    first = await client.post(FETCH, json={"url": url, "metadata": {"a": 1, "b": 2}}, headers=KEY)
    again = await client.post(FETCH, json={"metadata": {"b": 2, "a": 1}, "url": url}, headers=KEY)
    assert first.json() == again.json()
    assert len(sink.sent) == 1


async def test_the_parts_of_a_form_may_come_in_another_order(client: httpx.AsyncClient, sink: Sink) -> None:
    """What counts is what the request says, not how its bytes are laid out: another boundary is the same request."""
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
async def test_a_key_stands_for_one_request(client: httpx.AsyncClient, sink: Sink, other: dict[str, Any]) -> None:
    """The same key with other bytes or other words is refused with 422, and nothing is accepted."""
    assert (await upload(client)).status_code == 202
    answer = await upload(client, **other)
    refused(answer, 422, "idempotency-key-reused")
    assert len(sink.sent) == 1


async def test_a_key_of_an_upload_is_not_that_of_a_fetch(client: httpx.AsyncClient) -> None:
    """The endpoint is a part of the request: a key used for an upload is refused for a fetch."""
    assert (await upload(client)).status_code == 202
    answer = await client.post(FETCH, json={"url": "https://example.org/a"}, headers=KEY)
    refused(answer, 422, "idempotency-key-reused")


async def test_keys_are_each_owners_own(client: httpx.AsyncClient, sink: Sink) -> None:
    """Two owners may use the same key: neither sees, or is refused for, the other's request."""
    mine = await upload(client)
    theirs = await upload(client, JPEG + b"theirs", headers={"x-owner": "somebody"})
    assert theirs.status_code == 202
    assert mine.json()["image_id"] != theirs.json()["image_id"]
    assert len(sink.sent) == 2


async def test_while_the_first_is_at_work_the_second_is_told_to_come_back(files: FaultyFiles) -> None:
    """Of two at once with the same key one is done; the other hears 409 and when to ask, and then has the answer."""
    sink = Gated()
    async with client_of(app_of(files, sink)) as client:
        first = asyncio.create_task(upload(client))
        await sink.asked.wait()
        problem = await upload(client)
        refused(problem, 409, "idempotency-key-in-use")
        assert 1 <= int(problem.headers["retry-after"]) <= 15
        sink.let.set()
        assert (await upload(client)).status_code in (202, 409)  # as soon as it is written down
        done = await first
        assert (await upload(client)).json() == done.json()
    assert len(sink.sent) == 1


async def test_a_lease_is_put_off_while_the_work_goes_on(files: FaultyFiles) -> None:
    """Work that takes longer than a lease keeps its key: the lease is written anew before it ends."""
    sink = Gated()
    async with client_of(app_of(files, sink, idempotency_lease_s=4.0)) as client:
        first = asyncio.create_task(upload(client))
        await sink.asked.wait()
        ((_, begun),) = await attempts(files)
        while (await attempts(files))[0][1].lease_until == begun.lease_until:
            await asyncio.sleep(0.05)
        refused(await upload(client), 409, "idempotency-key-in-use")
        sink.let.set()
        assert (await first).status_code == 202
    assert len(sink.sent) == 1


@pytest.mark.parametrize("accepted", [False, True], ids=["before the event", "after the event"])
async def test_after_a_gateway_died_the_same_image_is_gone_on_with(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink, accepted: bool
) -> None:
    """A retry after the lease takes the image id the dead gateway had chosen: one image, whether it was accepted."""
    first = await upload(client)
    image_id = first.json()["image_id"]
    await has_died(files)
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


async def test_of_many_who_retry_after_a_death_one_goes_on(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """Ten retries at once of what a dead gateway began: one image; the others hear 409 or its answer."""
    image_id = (await upload(client)).json()["image_id"]
    await has_died(files)
    answers = await asyncio.gather(*(upload(client) for _ in range(10)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert {answer.json()["image_id"] for answer in answers if answer.status_code == 202} == {image_id}
    assert {event.image_id for _, event in sink.sent} == {image_id}


async def test_an_image_that_was_disowned_is_not_gone_on_with(files: FaultyFiles, sink: Sink) -> None:
    """When Kafka did not confirm and the gateway died before it could say so, a retry makes an image of another id."""

    class Unsure(Sink):
        async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
            raise DeliveryUnconfirmed("Kafka did not answer in time")

    async with client_of(app_of(files, sink)) as client:
        lost = (await upload(client)).json()["image_id"]
    await has_died(files)
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


async def test_what_was_refused_may_be_sent_again(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink) -> None:
    """A 503 keeps no key: sent again when Kafka is back, the request is accepted."""
    sink.unavailable = True
    refused(await upload(client), 503, "dependency-unavailable")
    assert await attempts(files) == []
    sink.unavailable = False
    assert (await upload(client)).status_code == 202
    assert len(sink.sent) == 1


async def test_without_a_store_a_key_is_not_passed_over(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """When keys cannot be looked up, a request that carries one is answered 503, and nothing is accepted."""
    files.unavailable = True
    refused(await upload(client), 503, "dependency-unavailable")
    assert not sink.sent


async def test_an_answer_that_cannot_be_written_down_is_given_all_the_same(files: FaultyFiles) -> None:
    """The image is accepted and the client told so, though the store went away before the answer was kept."""

    class Leaving(Sink):
        async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
            await super().send(topic, event, traceparent=traceparent, bulk=bulk)
            files.unavailable = True

    async with client_of(app_of(files, Leaving())) as client:
        answer = await upload(client)
    assert answer.status_code == 202


async def test_an_expired_key_may_stand_for_another_request(files: FaultyFiles, sink: Sink) -> None:
    """After its time a key is free: another request with it is done."""
    async with client_of(app_of(files, sink, idempotency_expiry_s=0.001)) as client:
        assert (await upload(client)).status_code == 202
        await asyncio.sleep(0.002)
        assert (await upload(client, JPEG + b"x")).status_code == 202
    assert len(sink.sent) == 2


@pytest.mark.parametrize(
    "key",
    ['"', '""', '"a', "a b", "1.5", "?1", ":YQ==:", "(1 2)", '"a", "b"', '"' + "x" * 256 + '"', "x" * 256, '"é"'],
)
async def test_a_key_that_is_no_string_is_refused(client: httpx.AsyncClient, sink: Sink, key: str) -> None:
    """A malformed, empty or too long key is refused with 400 before anything is kept."""
    answer = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}, headers=[(b"Idempotency-Key", key.encode())])
    if key == "1.5":  # a bare word, as many clients send it
        assert answer.status_code == 202
        return
    refused(answer, 400, "invalid-idempotency-key")
    assert not sink.sent


async def test_a_bare_key_is_the_same_as_the_quoted_one(client: httpx.AsyncClient, sink: Sink) -> None:
    """A UUID may be sent with quotes or without: it is one key."""
    key = "8e03978e-40d5-43dd-bc93-6894a57f9324"
    first = await upload(client, headers={"Idempotency-Key": key})
    again = await upload(client, headers={"Idempotency-Key": f'"{key}"'})
    assert first.json() == again.json()
    assert len(sink.sent) == 1


async def test_what_is_kept_says_nothing_of_the_key_or_the_request(
    client: httpx.AsyncClient, files: FaultyFiles
) -> None:
    """The stored attempt has neither the key nor the words of the request, only hashes and the answer."""
    answer = await upload(client, data={"metadata": '{"name": "Ada"}'}, headers={"Idempotency-Key": "secret-key"})
    ((key, attempt),) = await attempts(files)
    assert key == f"{IDEMPOTENCY}default/{hashlib.sha256(b'secret-key').hexdigest()}/000001.json"
    text = attempt.model_dump_json()
    assert "secret-key" not in text
    assert "Ada" not in text
    assert attempt.answer == Submitted.model_validate_json(answer.content).model_dump(mode="json")


async def test_a_sweep_removes_what_expired_a_page_at_a_time(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """The janitor removes expired keys and no others, so many in one sweep, and a dry run none."""
    for name in ("a", "b", "c"):
        await upload(client, headers={"Idempotency-Key": name})
    expiries = sorted(attempt.expires_at for _, attempt in await attempts(files))
    keys = ExpiredKeys(files)
    assert await keys.remove(now=expiries[-1] + 1, page_size=10, dry_run=True) == 3
    assert await keys.remove(now=expiries[0] - 1, page_size=10, dry_run=False) == 0
    assert [await keys.remove(now=expiries[-1] + 1, page_size=2, dry_run=False) for _ in range(2)] == [2, 1]
    assert await attempts(files) == []


async def test_a_sweep_says_that_the_store_is_away(files: FaultyFiles) -> None:
    """A sweep without a store fails as every other does."""
    files.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await ExpiredKeys(files).remove(now=0.0, page_size=1, dry_run=False)
