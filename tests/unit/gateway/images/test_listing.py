"""Listing images over HTTP: pages, filters, cursors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.http.cursors import cursor_after, place_of
from schemas.http.images import MAX_PAGE, PAGE, ImagePage
from schemas.values import DEFAULT_OWNER, ImageState, job_id_of, new_image_id
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Sink, StubReadiness, client_of, refused, settings
from tests.support.read_models import merge

IMAGES = "/api/v1/images"


@dataclass
class Server:
    """The embedded gateway on a real folder and the real in-process read model."""

    read_model: ReadModel
    client: httpx.AsyncClient

    async def add(self, **known: Any) -> str:
        """Record an image as the indexer does; return its id."""
        fields = {"owner": DEFAULT_OWNER, "state": ImageState.COMPLETED, "generation": 1, **known}
        record = ImageRecord.model_validate({"image_id": new_image_id(), **fields})
        await self.read_model.begin(record)
        return record.image_id

    async def page(self, **asked: Any) -> ImagePage:
        """Return a page."""
        answer = await self.client.get(IMAGES, params=asked)
        assert answer.status_code == 200, answer.text
        return ImagePage.model_validate_json(answer.content)

    async def ids(self, **asked: Any) -> list[str]:
        """Return the ids of a page."""
        return [item.image_id for item in (await self.page(**asked)).items]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The whole gateway with real components and an in-memory event sink."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        components = QueryComponents(files=files, events=Sink(), read_model=read_model, readiness=StubReadiness())
        async with client_of(embedded_app(settings(), components)) as client:
            yield Server(read_model, client)


async def test_a_listing_is_followed_by_its_links(server: Server) -> None:
    """Following `rel=next` returns every image once, newest first, even if more are added meanwhile."""
    ids = [await server.add() for _ in range(7)]
    await server.add(owner="bert")
    url: str | None = f"{IMAGES}?page_size=3&bucket=default"
    seen: list[str] = []
    pages = 0
    while url:
        answer = await server.client.get(url)
        page = ImagePage.model_validate_json(answer.content)
        seen += [item.image_id for item in page.items]
        pages += 1
        await server.add()
        link = answer.links.get("next", {}).get("url")
        assert (link is None) is (page.next_cursor is None)
        if link is not None:
            query = parse_qs(urlsplit(link).query)
            assert query == {"page_size": ["3"], "bucket": ["default"], "cursor": [page.next_cursor]}
        url = link
    assert seen == ids[::-1]
    assert pages == 3


async def test_a_listing_can_begin_with_the_oldest(server: Server) -> None:
    """With `order=oldest` the order of the pages is reversed."""
    ids = [await server.add() for _ in range(3)]
    first = await server.page(order="oldest", page_size=2)
    assert [item.image_id for item in first.items] == ids[:2]
    assert await server.ids(order="oldest", page_size=2, cursor=first.next_cursor) == ids[2:]


async def test_an_item_has_the_fields_of_its_image(server: Server) -> None:
    """An item has the state, the labels, the owner's annotations and the dates."""
    image_id = await server.add(
        tags=("beach",), category="trip", labels=("bus",), context={"n": 1}, bucket="b", filename="x.jpg",
        submitted_at="2026-01-01T00:00:00.000Z", finished_at="2026-01-01T00:00:02.000Z",
    )  # fmt: skip
    (item,) = (await server.client.get(IMAGES)).json()["items"]
    assert item == {
        "image_id": image_id, "job_id": job_id_of(image_id, 1), "state": "completed", "urls": {}, "labels": ["bus"],
        "tags": ["beach"], "category": "trip", "context": {"n": 1}, "bucket": "b", "filename": "x.jpg",
        "created_at": "2026-01-01T00:00:00.000Z", "completed_at": "2026-01-01T00:00:02.000Z",
    }  # fmt: skip


async def test_filters_are_combined(server: Server) -> None:
    """An image is listed if it matches every filter, including each of several tags and labels."""
    a = await server.add(tags=("x", "y"), labels=("bus",), submitted_at="2026-01-01T10:00:00.000Z", text="Stop here")
    b = await server.add(tags=("x",), category="c", state=ImageState.FAILED, submitted_at="2026-01-02T10:00:00.000Z")
    assert await server.ids(tag="x") == [b, a]
    assert await server.ids(tag=["x", "y"]) == [a]
    assert await server.ids(state="failed") == [b]
    assert await server.ids(category="c", tag="x") == [b]
    assert await server.ids(label="BUS") == [a]
    assert await server.ids(text="here STOP") == [a]
    assert await server.ids(bucket="other") == []
    assert await server.ids(since="2026-01-02T00:00:00Z") == [b]
    assert await server.ids(since="2026-01-01T12:00:00+02:00", until="2026-01-02T10:00:00.000Z") == [a]


async def test_an_image_is_hidden_as_soon_as_its_deletion_is_accepted(server: Server) -> None:
    """Before the indexer processes the deletion, the image is on no page; other images are not affected."""
    kept, gone, last = [await server.add() for _ in range(3)]
    assert (await server.client.delete(f"{IMAGES}/{gone}")).status_code == 202
    first = await server.page(page_size=2)
    assert [item.image_id for item in first.items] == [last]
    assert await server.ids(page_size=2, cursor=first.next_cursor) == [kept]


async def test_a_cursor_belongs_to_one_listing(server: Server) -> None:
    """A changed, truncated or forged cursor, or one of other filters, another order or owner, is rejected."""
    for _ in range(3):
        await server.add(tags=("x",))
    cursor = (await server.page(tag="x", page_size=1)).next_cursor
    assert cursor is not None
    assert len(await server.ids(tag="x", page_size=5, cursor=cursor)) == 2
    bent = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    for asked in (
        {"cursor": cursor}, {"tag": "y", "cursor": cursor}, {"tag": "x", "order": "oldest", "cursor": cursor},
        {"tag": "x", "cursor": bent}, {"tag": "x", "cursor": cursor[:-1]}, {"tag": "x", "cursor": cursor + "="},
        {"tag": "x", "cursor": ""}, {"tag": "x", "cursor": "ü"}, {"tag": "x", "cursor": "x" * 38},
    ):  # fmt: skip
        problem = refused(await server.client.get(IMAGES, params=asked), 400, "invalid-cursor")
        assert [item.field for item in problem.errors] == ["cursor"]


async def test_an_invalid_filter_is_named(server: Server) -> None:
    """An invalid filter is rejected by name."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"state": "deleted"}, "state"), ({"order": "size"}, "order"), ({"page_size": "0"}, "page_size"),
        ({"page_size": "x"}, "page_size"), ({"bucket": "-"}, "bucket"), ({"tag": ""}, "tag"), ({"label": "!"}, "label"),
        ({"tag": ["x"] * 21}, "tag"), ({"category": ""}, "category"), ({"text": "..."}, "text"),
        ({"since": "yesterday"}, "since"), ({"since": "2026-01-01"}, "since"), ({"until": "1700000000"}, "until"),
        ({"until": "2026-01-01T00:00:00"}, "until"), ({"until": "2026-13-01T00:00:00Z"}, "until"),
    ]  # fmt: skip
    for asked, field in wrong:
        problem = refused(await server.client.get(IMAGES, params=asked), 422, "invalid-field")
        assert problem.errors[0].field.split(".")[0] == field, asked


async def test_an_unknown_filter_is_rejected(server: Server) -> None:
    """A misspelt filter is rejected by name instead of being ignored."""
    problem = refused(await server.client.get(IMAGES, params={"colour": "red", "tag": "x"}), 400, "unknown-field")
    assert [item.field for item in problem.errors] == ["colour"]


async def test_the_page_size_is_limited(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for more than the maximum gets a full page and the link to the next."""
    assert (MAX_PAGE, PAGE) == (500, 50)
    monkeypatch.setattr("gateway.images.listing.MAX_PAGE", 5)
    ids = [await server.add() for _ in range(6)]
    page = await server.page(page_size=100_000)
    assert [item.image_id for item in page.items] == ids[:0:-1]
    assert await server.ids(page_size=6, cursor=page.next_cursor) == ids[:1]


async def test_an_unchanged_page_is_304(server: Server) -> None:
    """A page has an ETag; with it in If-None-Match the response is 304 until an item changes."""
    image_id = await server.add()
    answer = await server.client.get(IMAGES)
    condition = {"if-none-match": answer.headers["etag"]}
    again = await server.client.get(IMAGES, headers=condition)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    await merge(server.read_model, image_id, 1, {"tags": ["new"]})
    assert (await server.client.get(IMAGES, headers=condition)).status_code == 200


async def test_any_rfc_3339_time_is_accepted(server: Server) -> None:
    """Leap seconds, long fractions and the ends of the calendar are valid times."""
    await server.add(submitted_at="2016-12-31T23:59:59.500Z")
    for time in ("2016-12-31T23:59:60Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.123456789+00:00"):
        for name in ("since", "until"):
            assert (await server.client.get(IMAGES, params={name: time})).status_code == 200, (name, time)
    assert len(await server.ids(since="2016-12-31T23:59:59.4999Z", until="2016-12-31t23:59:59.6z")) == 1


def test_a_cursor_belongs_to_one_owner() -> None:
    """Another owner's cursor is invalid."""
    image_id = new_image_id()
    cursor = cursor_after(image_id, {"owner": "anna", "tags": ("x",)})
    assert place_of(cursor, {"owner": "anna", "tags": ("x",)}) == image_id
    with pytest.raises(ValueError, match="not a cursor"):
        place_of(cursor, {"owner": "bert", "tags": ("x",)})
