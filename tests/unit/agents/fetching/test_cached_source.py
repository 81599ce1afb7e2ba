"""Answers of sources that are kept, budgets and politeness, against a real HTTP server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents.fetching.source_errors import Refused
from agents.stages.fetcher import Tools
from schemas.events.intake import FetchPriority, FetchRequested
from schemas.values import ErrorCode, new_image_id
from streams.errors import Postponed, Retryable
from streams.object_store.factory import open_files
from streams.object_store.fetch_statistics import totals
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings
from tests.support.fetching import open_fetching
from tests.support.hand_clock import HandClock
from tests.support.web_source import Request, WebSource, serve

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
DAY = 86_400.0


@pytest.fixture
async def web() -> AsyncIterator[WebSource]:
    async with serve() as source:
        yield source


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


@pytest.fixture
def clock() -> HandClock:
    return HandClock(1_700_000_000.0)


async def get(tools: Tools, url: str, **more: object) -> str:
    """Fetch a URL for a new image; return the hash of the original."""
    event = FetchRequested.model_validate({"image_id": new_image_id(), "url": url, **more})
    return (await tools.source.original(event)).sha256


async def refusal(tools: Tools, url: str) -> ErrorCode:
    with pytest.raises(Refused) as caught:
        await get(tools, url)
    return caught.value.code


async def test_a_url_is_asked_for_once_in_thirty_days(web: WebSource, files: FileStore, clock: HandClock) -> None:
    """A valid answer needs no request, also for a new worker; another owner has answers of their own."""
    web.answer("/a", PNG)
    for _ in range(2):
        async with open_fetching(files, clock=clock) as tools:
            assert len({await get(tools, web.url("/a")) for _ in range(3)}) == 1
        clock.now += 29 * DAY
    assert len(web.requests) == 1
    async with open_fetching(files, clock=clock) as tools:
        await get(tools, web.url("/a"), owner="another")
        assert len(web.requests) == 2


async def test_concurrent_requests_cost_one_download(web: WebSource, files: FileStore) -> None:
    """Of concurrent requests for one URL, one asks the source; the others get its answer."""
    web.answer("/a", PNG)
    async with open_fetching(files, hold_s=5) as tools:
        assert len(set(await asyncio.gather(*(get(tools, web.url("/a")) for _ in range(16))))) == 1
    assert len(web.requests) == 1


async def test_an_old_answer_is_validated(web: WebSource, files: FileStore, clock: HandClock) -> None:
    """After thirty days the source is asked with its ETag; 304 keeps the image, anything else replaces it."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        known = request.headers.get("if-none-match") == '"1"'
        head = "304 Not Modified" if known else f'200 OK\r\netag: "1"\r\ncontent-length: {len(PNG)}'
        writer.write(f"HTTP/1.1 {head}\r\n\r\n".encode() + (b"" if known else PNG))
        await writer.drain()

    web.answers["/a"] = answer
    web.answer("/redirect", b"", 302, location="/a")
    async with open_fetching(files, clock=clock) as tools:
        first = await get(tools, web.url("/redirect"))
        clock.now += 31 * DAY
        assert await get(tools, web.url("/redirect")) == first
        assert [r.headers.get("if-none-match") for r in web.requests] == [None, None, None, '"1"']
        assert await get(tools, web.url("/redirect")) == first
        assert len(web.requests) == 4
        web.answer("/a", PNG + b"changed")
        assert await get(tools, web.url("/redirect"), refresh=True) != first


async def test_a_deleted_original_is_fetched_again(web: WebSource, files: FileStore) -> None:
    """An answer whose bytes were deleted is no answer, and no conditional request is made for it."""
    web.answer("/a", PNG, etag='"1"')
    async with open_fetching(files) as tools:
        event = FetchRequested(image_id=new_image_id(), url=web.url("/a"))
        original = await tools.source.original(event)
        await files.delete(original.key)
        assert await get(tools, web.url("/a")) == original.sha256
        assert await files.get(original.key) == PNG
    assert [r.headers.get("if-none-match") for r in web.requests] == [None, None]


async def test_a_refusal_is_valid_for_a_day(web: WebSource, files: FileStore, clock: HandClock) -> None:
    """A refusal is answered without a request for 24 hours; then the source is asked again."""
    web.answer("/a", b"", 404)
    async with open_fetching(files, clock=clock) as tools:
        assert {await refusal(tools, web.url("/a")) for _ in range(3)} == {ErrorCode.SOURCE_NOT_FOUND}
        assert len(web.requests) == 1
        clock.now += DAY
        web.answer("/a", PNG)
        assert await get(tools, web.url("/a"))
        assert len(web.requests) == 2


async def test_26_requests_of_one_source(web: WebSource, files: FileStore, clock: HandClock) -> None:
    """25 go out, the 26th is postponed until the window has moved, and another source is not delayed."""
    for n in range(30):
        web.answer(f"/{n}", PNG + bytes([n]))
    async with serve() as other, open_fetching(files, clock=clock) as tools:
        other.answer("/a", PNG)
        for n in range(25):
            await get(tools, web.url(f"/{n}"))
        with pytest.raises(Postponed) as caught:
            await get(tools, web.url("/25"))
        assert (caught.value.code, caught.value.after_s) == (ErrorCode.SOURCE_BUSY, 3610.0)
        await get(tools, other.url("/a"))
        await get(tools, web.url("/3"))  # a valid answer needs no budget
        assert (len(web.requests), len(other.requests)) == (25, 1)
    async with open_fetching(files, clock=clock) as tools:  # restarted
        with pytest.raises(Postponed):
            await get(tools, web.url("/25"))
        clock.now += 3610
        await get(tools, web.url("/25"))
    assert len(web.requests) == 26


async def test_less_urgent_requests_leave_a_part_of_the_budget(web: WebSource, files: FileStore) -> None:
    """Background requests use half of a budget, batches four fifths, interactive ones all of it."""
    for n in range(30):
        web.answer(f"/{n}", PNG + bytes([n]))
    sent = Counter[FetchPriority]()
    async with open_fetching(files, requests=10) as tools:
        for n, priority in enumerate([p for p in reversed(FetchPriority) for _ in range(10)]):
            try:
                await get(tools, web.url(f"/{n}"), priority=priority)
                sent[priority] += 1
            except Postponed:
                pass
    assert sent == {FetchPriority.BACKGROUND: 5, FetchPriority.BATCH: 3, FetchPriority.INTERACTIVE: 2}


@pytest.mark.parametrize(("status", "wait"), [(429, 120.0), (503, 120.0), (429, None), (503, None)])
async def test_a_busy_source_is_left_alone(
    web: WebSource, files: FileStore, clock: HandClock, status: int, wait: float | None
) -> None:
    """A source that says it is busy gets no request until the time it asked for; 503 alone stops only this request."""
    web.answer("/a", b"", status, **({"retry_after": "120"} if wait else {}))
    web.answer("/b", PNG)
    async with open_fetching(files, clock=clock) as tools:
        with pytest.raises(Retryable):
            await get(tools, web.url("/a"))
        if status == 503 and wait is None:
            await get(tools, web.url("/b"))
            return
        with pytest.raises(Postponed) as caught:
            await get(tools, web.url("/b"))
        assert caught.value.after_s == (wait or 30.0)
    async with open_fetching(files, clock=clock) as tools:
        with pytest.raises(Postponed):
            await get(tools, web.url("/b"))
        clock.now += wait or 30.0
        await get(tools, web.url("/b"))


async def test_a_redirect_is_followed_once(web: WebSource, files: FileStore, clock: HandClock) -> None:
    """When a redirect leads to a source whose budget is spent, the fetch continues there, not from the beginning."""
    async with serve() as busy, open_fetching(files, clock=clock, requests=1) as tools:
        busy.answer("/b", PNG)
        busy.answer("/c", PNG)
        web.answer("/a", b"", 302, location=busy.url("/b"))
        await get(tools, busy.url("/c"))
        for _ in range(2):
            with pytest.raises(Postponed):
                await get(tools, web.url("/a"))
        clock.now += 3610
        await get(tools, web.url("/a"))
        assert [r.path for r in web.requests] == ["/a"]
        assert [r.path for r in busy.requests] == ["/c", "/b"]


async def test_robots_are_obeyed_where_the_setting_says_so(web: WebSource, files: FileStore) -> None:
    """A disallowed URL is refused, an allowed one fetched; the file is read once. Without one, all is allowed."""
    web.answer("/robots.txt", b"User-agent: *\nDisallow: /private\n")
    web.answer("/private/a", PNG)
    web.answer("/a", PNG)
    async with serve() as other, open_fetching(files, robots="obey") as tools:
        other.answer("/robots.txt", b"", 404)
        other.answer("/private/a", PNG)
        assert await refusal(tools, web.url("/private/a")) is ErrorCode.SOURCE_REFUSED
        await get(tools, web.url("/a"))
        await get(tools, other.url("/private/a"))
    assert [r.path for r in web.requests] == ["/robots.txt", "/a"]


async def test_headers_go_to_their_source_only(web: WebSource, files: FileStore) -> None:
    """A source's headers are sent to it, not to the source it redirects to, and not unencrypted unless allowed."""
    name = f"127.0.0.1:{web.port}"
    rule = {"headers": {"Authorization": "Bearer secret"}, "headers_over_http": True}
    async with serve() as other:
        other.answer("/b", PNG)
        web.answer("/a", b"", 302, location=other.url("/b"))
        async with open_fetching(files, sources={name: rule}) as tools:
            await get(tools, web.url("/a"))
        web.answer("/c", PNG)
        async with open_fetching(files, sources={name: {**rule, "headers_over_http": False}}) as tools:
            await get(tools, web.url("/c"))
        assert [r.headers.get("authorization") for r in web.requests] == ["Bearer secret", None]
        assert [r.headers.get("authorization") for r in other.requests] == [None]


async def test_statistics_are_summed_over_workers(web: WebSource, files: FileStore) -> None:
    """What two workers did is one sum; bytes that were not downloaded again are counted as saved."""
    web.answer("/a", PNG)
    web.answer("/b", b"", 404)
    for _ in range(2):
        async with open_fetching(files) as tools:
            for _ in range(2):
                await get(tools, web.url("/a"))
                await refusal(tools, web.url("/b"))
            await tools.source.statistics.save(files)
    found = await totals(files, now=0.0)
    assert found["fetched"] == found["refused"] == 1
    assert found["stored"] == found["refused-before"] == 3
    assert found["bytes_saved"] == 3 * len(PNG)
