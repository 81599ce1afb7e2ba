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

IMAGES = "/api/v1/images"


@dataclass
class House:
    """The embedded gateway on a real folder and the real in-process read model."""

    read_model: ReadModel
    client: httpx.AsyncClient

    async def add(self, **known: Any) -> str:
        """Record an image as the indexer does; return its id."""
        said = {"owner": DEFAULT_OWNER, "state": ImageState.COMPLETED, "generation": 1, **known}
        record = ImageRecord.model_validate({"image_id": new_image_id(), **said})
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
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """The whole gateway, its parts real, its Kafka a list."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        parts = QueryComponents(files=files, events=Sink(), read_model=read_model, readiness=StubReadiness())
        async with client_of(embedded_app(settings(), parts)) as client:
            yield House(read_model, client)


async def test_a_listing_is_followed_by_its_links(house: House) -> None:
    """Following `rel=next` from the first page gives every image once, newest first, though more arrive meanwhile."""
    ids = [await house.add() for _ in range(7)]
    await house.add(owner="bert")
    url: str | None = f"{IMAGES}?page_size=3&bucket=default"
    seen: list[str] = []
    pages = 0
    while url:
        answer = await house.client.get(url)
        page = ImagePage.model_validate_json(answer.content)
        seen += [item.image_id for item in page.items]
        pages += 1
        await house.add()
        link = answer.links.get("next", {}).get("url")
        assert (link is None) is (page.next_cursor is None)
        if link is not None:
            query = parse_qs(urlsplit(link).query)
            assert query == {"page_size": ["3"], "bucket": ["default"], "cursor": [page.next_cursor]}
        url = link
    assert seen == ids[::-1]
    assert pages == 3


async def test_a_listing_can_begin_with_the_oldest(house: House) -> None:
    """With `order=oldest` the pages go the other way."""
    ids = [await house.add() for _ in range(3)]
    first = await house.page(order="oldest", page_size=2)
    assert [item.image_id for item in first.items] == ids[:2]
    assert await house.ids(order="oldest", page_size=2, cursor=first.next_cursor) == ids[2:]


async def test_an_item_says_what_the_image_is_known_by(house: House) -> None:
    """An item has the state, the labels, the owner's own words and dates."""
    image_id = await house.add(
        tags=("beach",), category="trip", labels=("bus",), context={"n": 1}, bucket="b", filename="x.jpg",
        submitted_at="2026-01-01T00:00:00.000Z", finished_at="2026-01-01T00:00:02.000Z",
    )  # fmt: skip
    (item,) = (await house.client.get(IMAGES)).json()["items"]
    assert item == {
        "image_id": image_id, "job_id": job_id_of(image_id, 1), "state": "completed", "urls": {}, "labels": ["bus"],
        "tags": ["beach"], "category": "trip", "context": {"n": 1}, "bucket": "b", "filename": "x.jpg",
        "created_at": "2026-01-01T00:00:00.000Z", "completed_at": "2026-01-01T00:00:02.000Z",
    }  # fmt: skip


async def test_filters_hold_together(house: House) -> None:
    """An image is listed if it suits every filter, each of several tags and labels included."""
    a = await house.add(tags=("x", "y"), labels=("bus",), submitted_at="2026-01-01T10:00:00.000Z", text="Stop here")
    b = await house.add(tags=("x",), category="c", state=ImageState.FAILED, submitted_at="2026-01-02T10:00:00.000Z")
    assert await house.ids(tag="x") == [b, a]
    assert await house.ids(tag=["x", "y"]) == [a]
    assert await house.ids(state="failed") == [b]
    assert await house.ids(category="c", tag="x") == [b]
    assert await house.ids(label="BUS") == [a]
    assert await house.ids(text="here STOP") == [a]
    assert await house.ids(bucket="other") == []
    assert await house.ids(since="2026-01-02T00:00:00Z") == [b]
    assert await house.ids(since="2026-01-01T12:00:00+02:00", until="2026-01-02T10:00:00.000Z") == [a]


async def test_an_image_is_gone_from_the_moment_its_deletion_is_accepted(house: House) -> None:
    """Before the indexer has done anything a deleted image is on no page, and the others are on theirs."""
    kept, gone, last = [await house.add() for _ in range(3)]
    assert (await house.client.delete(f"{IMAGES}/{gone}")).status_code == 202
    first = await house.page(page_size=2)
    assert [item.image_id for item in first.items] == [last]
    assert await house.ids(page_size=2, cursor=first.next_cursor) == [kept]


async def test_a_cursor_is_of_one_listing(house: House) -> None:
    """A cursor that was changed, cut, made up, or taken to other filters, another order or owner is refused."""
    for _ in range(3):
        await house.add(tags=("x",))
    cursor = (await house.page(tag="x", page_size=1)).next_cursor
    assert cursor is not None
    assert len(await house.ids(tag="x", page_size=5, cursor=cursor)) == 2
    bent = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    for asked in (
        {"cursor": cursor}, {"tag": "y", "cursor": cursor}, {"tag": "x", "order": "oldest", "cursor": cursor},
        {"tag": "x", "cursor": bent}, {"tag": "x", "cursor": cursor[:-1]}, {"tag": "x", "cursor": cursor + "="},
        {"tag": "x", "cursor": ""}, {"tag": "x", "cursor": "ü"}, {"tag": "x", "cursor": "x" * 38},
    ):  # fmt: skip
        problem = refused(await house.client.get(IMAGES, params=asked), 400, "invalid-cursor")
        assert [item.field for item in problem.errors] == ["cursor"]


async def test_what_cannot_be_asked_is_named(house: House) -> None:
    """A filter that is not as it must be is refused by its name."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"state": "deleted"}, "state"), ({"order": "size"}, "order"), ({"page_size": "0"}, "page_size"),
        ({"page_size": "x"}, "page_size"), ({"bucket": "-"}, "bucket"), ({"tag": ""}, "tag"), ({"label": "!"}, "label"),
        ({"tag": ["x"] * 21}, "tag"), ({"category": ""}, "category"), ({"text": "..."}, "text"),
        ({"since": "yesterday"}, "since"), ({"since": "2026-01-01"}, "since"), ({"until": "1700000000"}, "until"),
        ({"until": "2026-01-01T00:00:00"}, "until"), ({"until": "2026-13-01T00:00:00Z"}, "until"),
    ]  # fmt: skip
    for asked, field in wrong:
        problem = refused(await house.client.get(IMAGES, params=asked), 422, "invalid-field")
        assert problem.errors[0].field.split(".")[0] == field, asked


async def test_a_filter_nobody_reads_is_refused(house: House) -> None:
    """A misspelt filter does not list everything, as if it had been obeyed: it is named."""
    problem = refused(await house.client.get(IMAGES, params={"colour": "red", "tag": "x"}), 400, "unknown-field")
    assert [item.field for item in problem.errors] == ["colour"]


async def test_a_page_has_a_limit(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for more than a page holds gets a full page, and the way to the next."""
    assert (MAX_PAGE, PAGE) == (500, 50)
    monkeypatch.setattr("gateway.images.listing.MAX_PAGE", 5)
    ids = [await house.add() for _ in range(6)]
    page = await house.page(page_size=100_000)
    assert [item.image_id for item in page.items] == ids[:0:-1]
    assert await house.ids(page_size=6, cursor=page.next_cursor) == ids[:1]


async def test_a_page_that_did_not_change_is_not_sent_again(house: House) -> None:
    """A page has an entity tag; whoever names it gets 304, until something on the page is another."""
    image_id = await house.add()
    answer = await house.client.get(IMAGES)
    condition = {"if-none-match": answer.headers["etag"]}
    again = await house.client.get(IMAGES, headers=condition)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    await house.read_model.merge(image_id, 1, {"tags": ["new"]})
    assert (await house.client.get(IMAGES, headers=condition)).status_code == 200


async def test_any_time_that_can_be_written_can_be_asked_for(house: House) -> None:
    """Leap seconds, long fractions and the ends of the calendar are times too."""
    await house.add(submitted_at="2016-12-31T23:59:59.500Z")
    for time in ("2016-12-31T23:59:60Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.123456789+00:00"):
        for name in ("since", "until"):
            assert (await house.client.get(IMAGES, params={name: time})).status_code == 200, (name, time)
    assert len(await house.ids(since="2016-12-31T23:59:59.4999Z", until="2016-12-31t23:59:59.6z")) == 1


def test_a_cursor_is_of_one_owner() -> None:
    """A cursor that somebody else was given is none."""
    image_id = new_image_id()
    cursor = cursor_after(image_id, {"owner": "anna", "tags": ("x",)})
    assert place_of(cursor, {"owner": "anna", "tags": ("x",)}) == image_id
    with pytest.raises(ValueError, match="not a cursor"):
        place_of(cursor, {"owner": "bert", "tags": ("x",)})
