"""Rate limits: sliding windows, shared across gateways, reported in headers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import http_sf
import httpx
import pytest
from fastapi import Request
from pydantic import SecretStr, ValidationError

from gateway.access.identity import ANONYMOUS, Identity, Scope
from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.http.problems import Problem
from gateway.limits.rate_limits import Limits, limit_headers, open_limits
from gateway.limits.settings import RateLimitSettings
from infra.local.kafka import LocalKafka
from schemas.http.problems import ProblemCode
from schemas.values import Owner
from streams.object_store.factory import open_files
from streams.settings import BreakerSettings, FilesSettings
from tests.support.deployment import deployed
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
from tests.support.gateway_processes import start_gateways
from tests.support.services import LocalRedis, suspended

ANNA = Identity(Owner("anna"), frozenset(Scope), "token:anna")
BERT = Identity(Owner("bert"), frozenset(Scope), "token:bert")


@dataclass
class Clock:
    """A clock that moves only by calls."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "time", found)
    return found


Open = Callable[..., Any]


@pytest.fixture(params=["memory", "redis"])
async def opened(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    """Open limits counted in this process, and limits counted in Redis."""
    url = SecretStr(request.getfixturevalue("redis").url) if request.param == "redis" else None
    async with AsyncExitStack() as stack:

        async def open_with(**changes: str) -> Limits:
            return await stack.enter_async_context(
                open_limits(RateLimitSettings.model_validate({"redis_url": url, "changes": "none", **changes}))
            )

        yield open_with


def new_request() -> Request:
    """Return a request that has used nothing yet."""
    return Request({"type": "http"})


async def take(limits: Limits, identity: Identity = ANNA, *, cost: int = 1, kind: str = "uploads") -> Request:
    """Count a use for a new request."""
    request = new_request()
    await limits.take(request, identity, kind, cost=cost)
    return request


async def refusal(limits: Limits, identity: Identity = ANNA, *, cost: int = 1) -> int | None:
    """Return the Retry-After of a use that must be refused."""
    with pytest.raises(Problem) as found:
        await take(limits, identity, cost=cost)
    assert (found.value.code, found.value.status) == (ProblemCode.RATE_LIMITED, 429)
    after = found.value.headers.get("Retry-After")
    return None if after is None else int(after)


async def test_the_window_slides(opened: Open, clock: Clock) -> None:
    """Uses leave the window one by one, each an hour later: no full hour of the clock allows twice the limit."""
    limits = await opened(uploads="5/hour")
    await take(limits, cost=3)
    clock.now += 1800
    await take(limits, cost=2)
    assert await refusal(limits) is not None
    clock.now += 1801
    await take(limits, cost=3)
    assert await refusal(limits) is not None
    clock.now += 1800
    await take(limits, cost=2)
    assert await refusal(limits) is not None


async def test_retry_after_is_when_there_is_room(opened: Open, clock: Clock) -> None:
    """After exactly Retry-After seconds the refused use fits; a second earlier it does not."""
    limits = await opened(uploads="5/hour")
    await take(limits, cost=1)
    clock.now += 600
    await take(limits, cost=2)
    clock.now += 600
    await take(limits, cost=2)
    wait_s = await refusal(limits, cost=3)
    assert wait_s == 3000 + 1  # until the three oldest have left; what is exactly an hour old still counts
    clock.now += wait_s - 1
    assert await refusal(limits, cost=3) == 1
    clock.now += 1
    await take(limits, cost=3)


async def test_all_or_none(opened: Open, clock: Clock) -> None:
    """Uses that do not fit as a whole are not counted; those that never fit have no Retry-After."""
    limits = await opened(uploads="5/hour")
    await take(limits, cost=3)
    assert await refusal(limits, cost=3) is not None
    assert await refusal(limits, cost=6) is None
    await take(limits, cost=2)
    clock.now += 1


async def test_a_use_counts_for_all_limits_or_none(opened: Open, clock: Clock) -> None:
    """With a limit per minute and one per hour, a use that the second refuses is not counted by the first."""
    limits = await opened(uploads="3/minute; 4/hour")
    await take(limits, cost=3)
    assert await refusal(limits) == 61
    clock.now += 61
    await take(limits)
    for _ in range(3):
        assert (await refusal(limits) or 0) > 3000
    assert [known.remaining for known in await limits.statuses(ANNA)] == [2, 0]


async def test_limits_are_counted_by_owner_or_by_key_with_own_limits(opened: Open) -> None:
    """Limits are counted by owner; a key with limits of its own is counted by itself, not for its owner."""
    limits = await opened(uploads="1/hour")
    keys = [Identity(Owner("anna"), frozenset(Scope), f"key:{n}", {"uploads": f"{n}/hour"}) for n in (2, 3)]
    await take(limits, ANNA)
    await take(limits, BERT)
    assert await refusal(limits, ANNA)
    assert await refusal(limits, BERT)
    for key, count in zip(keys, (2, 3), strict=True):
        await take(limits, key, cost=count)
        assert await refusal(limits, key)
    plain = Identity(Owner("anna"), frozenset(Scope), "key:plain")
    assert await refusal(limits, plain), "a key without limits is its owner's"


async def test_returned_uses_are_available_again(opened: Open) -> None:
    """Returned uses are available to the next request; returning them twice adds nothing."""
    limits = await opened(uploads="4/hour")
    await take(limits)
    request = await take(limits, cost=3)
    assert await refusal(limits)
    await limits.refund(request.scope)
    await limits.refund(request.scope)
    await take(limits, cost=3)
    assert await refusal(limits)


async def test_headers_are_structured_fields(opened: Open, clock: Clock) -> None:
    """RateLimit-Policy and RateLimit are structured fields of the draft; the three older headers agree."""
    limits = await opened(uploads="50/hour")
    await take(limits, cost=7)
    clock.now += 60
    headers = limit_headers(await limits.statuses(ANNA))
    assert http_sf.parse(headers["RateLimit-Policy"].encode(), tltype="list") == [("uploads", {"q": 50, "w": 3600})]
    assert http_sf.parse(headers["RateLimit"].encode(), tltype="list") == [("uploads", {"r": 43, "t": 3540})]
    older = {name: headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")}
    assert older == {"Limit": "50", "Remaining": "43", "Reset": "3540"}


@pytest.mark.parametrize("text", ["", "many", "0/hour", "50", "-1/hour", "50/fortnight"])
def test_invalid_limits_are_refused_at_start(text: str) -> None:
    """A limit that cannot be parsed, or allows nothing, is an error of the settings."""
    with pytest.raises(ValidationError):
        RateLimitSettings(uploads=text)


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "127.0.0.1:6379", "memory://"])
def test_an_invalid_redis_url_is_refused_at_start(url: str) -> None:
    """An invalid Redis URL is an error of the settings, which does not contain the password."""
    with pytest.raises(ValidationError) as found:
        RateLimitSettings(redis_url=SecretStr(url))
    assert url not in str(found.value)


@dataclass
class Named:
    """An authenticator that takes the owner from a header."""

    known: dict[str, Identity] = field(default_factory=lambda: {"anna": ANNA, "bert": BERT})

    async def identify(self, request: Request) -> Identity:
        return self.known[request.headers["x-who"]]


@dataclass
class Gateway:
    """A gateway with limits, and a client of it."""

    client: httpx.AsyncClient
    files: FaultyFiles
    sink: Sink

    async def upload(self, data: bytes = JPEG, who: str = "anna") -> httpx.Response:
        return await self.client.post(UPLOAD, files={"file": ("cat.jpg", data)}, headers={"x-who": who})


@pytest.fixture
async def gateway(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    changes = getattr(request, "param", {})
    sink = Sink()
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_limits(RateLimitSettings(**changes)) as limits,
    ):
        frail = FaultyFiles(files)
        parts = IngestComponents(
            files=frail, events=sink, readiness=StubReadiness(), authenticator=Named(), limits=limits
        )
        async with client_of(ingest_app(settings(max_upload_bytes=100_000), parts)) as client:
            yield Gateway(client, frail, sink)


async def test_the_default_is_fifty_uploads_an_hour(gateway: Gateway) -> None:
    """By default an owner's 51st upload within the hour is refused with 429 and stores nothing."""
    for number in range(50):
        answer = await gateway.upload(JPEG + bytes([number]))
        assert answer.status_code == 202, answer.text
        assert answer.headers["x-ratelimit-remaining"] == str(49 - number)
        assert answer.headers["ratelimit-policy"] == '"uploads";q=50;w=3600'
    answer = await gateway.upload()
    problem = refused(answer, 429, "rate-limited")
    assert "50 uploads in 1 hour" in problem.detail
    assert 0 < int(answer.headers["retry-after"]) <= 3601
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert len(gateway.sink.sent) == len(await gateway.files.receipts()) == 50
    assert (await gateway.upload(who="bert")).status_code == 202


@dataclass
class OpenDoor:
    """An authenticator of a gateway without keys, which knows callers with a key all the same."""

    async def identify(self, request: Request) -> Identity:
        return ANNA if "x-who" in request.headers else ANONYMOUS


@pytest.mark.parametrize(("changes", "most"), [({}, None), ({"uploads": "50/hour"}, 50), ({"uploads": "2/hour"}, 2)])
async def test_uploads_without_credentials_are_limited_only_by_a_setting(
    tmp_path: Path, changes: dict[str, str], most: int | None
) -> None:
    """An anonymous caller has no default limit of uploads; a setting applies, even one equal to the default."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_limits(RateLimitSettings(**changes)) as limits,
    ):
        parts = IngestComponents(
            files=files, events=Sink(), readiness=StubReadiness(), authenticator=OpenDoor(), limits=limits
        )
        async with client_of(ingest_app(settings(), parts)) as client:
            answers = [
                await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG + bytes([number]))})
                for number in range(60 if most is None else most + 1)
            ]
            accepted = sum(answer.status_code == 202 for answer in answers)
            assert accepted == (60 if most is None else most)
            keyed = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}, headers={"x-who": "anna"})
    expected = "50" if most is None else str(most)
    assert keyed.headers["x-ratelimit-limit"] == expected, "with credentials the default stays"


@pytest.mark.parametrize("gateway", [{"uploads": "2/hour"}], indirect=True)
async def test_fetches_count_as_uploads(gateway: Gateway) -> None:
    """A fetch counts as an upload."""
    url = {"url": "https://example.org/cat.jpg"}
    fetch = await gateway.client.post("/api/v1/images/fetch", json=url, headers={"x-who": "anna"})
    assert (fetch.status_code, fetch.headers["x-ratelimit-remaining"]) == (202, "1")
    assert (await gateway.upload()).status_code == 202
    fetch = await gateway.client.post("/api/v1/images/fetch", json=url, headers={"x-who": "anna"})
    refused(fetch, 429, "rate-limited")


@pytest.mark.parametrize("gateway", [{"uploads": "2/hour"}], indirect=True)
async def test_a_503_returns_its_use_and_a_refused_image_does_not(gateway: Gateway) -> None:
    """A 503 returns its use; a refused image does not."""
    gateway.sink.unavailable = True
    for _ in range(3):
        answer = await gateway.upload()
        refused(answer, 503, "dependency-unavailable")
        assert answer.headers["x-ratelimit-remaining"] == "2"
    gateway.sink.unavailable = False
    refused(await gateway.upload(b"no image"), 415, "unsupported-format")
    assert (await gateway.upload()).status_code == 202
    refused(await gateway.upload(), 429, "rate-limited")


@pytest.mark.parametrize("gateway", [{"requests": "3/minute"}], indirect=True)
async def test_requests_are_limited_and_health_is_not(gateway: Gateway) -> None:
    """A limit of requests counts every endpoint that requires a scope, and no health checks."""
    for _ in range(5):
        health = await gateway.client.get("/health/live")
        assert (health.status_code, "ratelimit" in health.headers) == (200, False)
    assert (await gateway.upload()).status_code == 202
    assert (await gateway.upload()).status_code == 202
    refused(await gateway.upload(b"no image"), 415, "unsupported-format")
    answer = await gateway.upload()
    assert '"requests"' in answer.headers["ratelimit"]
    refused(answer, 429, "rate-limited")
    assert (await gateway.client.get("/health/live")).status_code == 200


async def test_without_redis_each_gateway_counts_by_itself(redis: LocalRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis the gateway counts by itself and health reports it, until Redis is available again."""
    monkeypatch.setattr("gateway.limits.rate_limits._BREAKER", BreakerSettings(failures=3, open_s=0.2))
    limits = RateLimitSettings(redis_url=SecretStr(redis.url), uploads="2/hour", changes="none")
    async with open_limits(limits) as one, open_limits(limits) as other:
        await take(one)
        await take(other)
        assert await refusal(one)
        assert one.available() == (True, "counted for all gateways")
        redis.stop()
        await take(one, cost=2)
        assert await refusal(one)
        ok, why = one.available()
        assert not ok
        assert "each gateway counts separately" in why
        redis.start()
        deadline = time.monotonic() + 60
        while not one.available()[0]:
            assert time.monotonic() < deadline, "the shared count did not come back"
            await one.statuses(ANNA)
        assert [known.remaining for known in await one.statuses(ANNA)] == [2], "a new Redis knows of nothing"


async def test_concurrent_uses_are_counted_exactly(redis: LocalRedis) -> None:
    """Of 300 concurrent uses exactly the limit is accepted, and all are counted in Redis."""
    patient = RateLimitSettings(redis_url=SecretStr(redis.url), redis_timeout_s=60, uploads="100/hour")
    async with open_limits(patient) as limits:
        ends = await asyncio.gather(*(take(limits) for _ in range(300)), return_exceptions=True)
        assert sum(isinstance(end, Request) for end in ends) == 100
        assert sum(isinstance(end, Problem) for end in ends) == 200
        assert limits.available()[0]


async def test_a_hanging_redis_delays_requests_by_seconds(redis: LocalRedis) -> None:
    """A Redis that accepts connections without responding delays a request by seconds, and counts as unavailable."""
    with suspended(redis):
        async with open_limits(
            RateLimitSettings(redis_url=SecretStr(redis.url), redis_timeout_s=0.2, uploads="5/hour")
        ) as limits:
            async with asyncio.timeout(60):
                await take(limits, cost=3)
                await take(limits, cost=2)
                assert await refusal(limits)
            assert not limits.available()[0]


def test_two_gateways_share_the_count(kafka: LocalKafka, redis: LocalRedis, tmp_path: Path) -> None:
    """Two gateway processes with one Redis together accept as many concurrent uploads as the limit."""
    limited = {"DARKROOM_LIMITS__UPLOADS": "10/hour", "DARKROOM_LIMITS__REDIS_URL": redis.url}
    with deployed(kafka.bootstrap, tmp_path, agents=(), settings=limited) as deployment:
        urls = start_gateways(deployment, 2)

        def upload(number: int) -> httpx.Response:
            files = {"file": ("cat.jpg", JPEG + bytes([number]))}
            return httpx.post(urls[number % 2] + UPLOAD, files=files, timeout=60)

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(upload, range(30)))
        assert sorted(answer.status_code for answer in answers) == [202] * 10 + [429] * 20
        assert {answer.headers["x-ratelimit-remaining"] for answer in answers if answer.status_code == 429} == {"0"}
        assert len(deployment.keys("jobs/")) == 10
        for url in urls:
            assert httpx.post(url + UPLOAD, files={"file": ("cat.jpg", JPEG)}).status_code == 429
