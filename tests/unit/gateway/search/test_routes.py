"""Search over HTTP: what matches, what is too dissimilar, and what the read model and the encoder are asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.apps.components import QueryComponents
from gateway.apps.query import query_app
from schemas.http.search import SearchAnswer
from schemas.values import DEFAULT_OWNER, ImageState, new_image_id
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Encoder, Sink, StubReadiness, client_of, refused, settings
from tests.support.read_models import merge

SEARCH, LIKE = "/api/v1/search", "/api/v1/search/image"


def at_cosine(cosine: float) -> list[float]:
    """Return a unit vector with this cosine to the encoder's first word and to `JPEG_OF_FIRST`."""
    return [cosine, 0.0, 0.0, (1 - cosine * cosine) ** 0.5, *[0.0] * 508]


JPEG_OF_FIRST = b"\xff\xd8\xff\xe0" + b"\x00" * 200


@dataclass
class AnyWords(Encoder):
    """An encoder of any words as the same vector, which notes them."""

    asked: list[str] = field(default_factory=list)

    async def encode_text(self, text: str) -> list[float]:
        self.asked.append(text)
        return at_cosine(1.0)


@dataclass
class Server:
    """A query gateway on the real in-process read model."""

    client: httpx.AsyncClient
    read_model: ReadModel
    encoder: AnyWords

    async def add(self, *, vector: Sequence[float] | None = None, **known: Any) -> str:
        """Record an image as the indexer does; return its id."""
        fields = {"owner": DEFAULT_OWNER, "state": ImageState.COMPLETED, "generation": 1, **known}
        record = ImageRecord.model_validate({"image_id": new_image_id(), **fields})
        await self.read_model.begin(record)
        if vector is not None:
            await merge(self.read_model, record.image_id, 1, {"has_vector": True}, vector=vector)
        return record.image_id

    async def search(self, query: str, **parameters: str | float) -> SearchAnswer:
        """Return the answer to a search by words."""
        answer = await self.client.get(SEARCH, params={"q": query, **parameters})
        assert answer.status_code == 200, answer.text
        return SearchAnswer.model_validate_json(answer.content)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The gateway, with a minimum similarity of 0.2 to text and of 0.6 to images."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        encoder = AnyWords()
        components = QueryComponents(
            files=files, events=Sink(), read_model=read_model, encoder=encoder, readiness=StubReadiness()
        )
        own = settings(min_text_similarity=0.2, min_image_similarity=0.6)
        async with client_of(query_app(own, components)) as client:
            yield Server(client, read_model, encoder)


async def test_dissimilar_images_are_not_found_by_meaning(server: Server) -> None:
    """Below the minimum similarity an image is not found; a request may set its own minimum."""
    near, far = await server.add(vector=at_cosine(0.25)), await server.add(vector=at_cosine(0.15))
    found = (await server.search("anything")).items
    assert [(item.image_id, item.similarity) for item in found] == [(near, 0.25)]
    assert [item.image_id for item in (await server.search("anything", min_similarity=0.1)).items] == [near, far]
    assert (await server.search("anything", min_similarity=0.3)).items == ()
    assert (await server.search("anything", min_similarity=0.3)).by_meaning


async def test_words_are_found_whatever_the_similarity(server: Server) -> None:
    """An image whose text matches is found although it is dissimilar, and then only by its text."""
    image_id = await server.add(vector=at_cosine(0.0), text="the total")
    (item,) = (await server.search("total")).items
    assert (item.image_id, item.matched, item.similarity, item.text) == (image_id, ("text",), None, "the total")


async def test_similar_images_have_a_minimum_of_their_own(server: Server) -> None:
    """Images less similar to an image than the minimum are not found, by file and by id; a request may lower it."""
    given = await server.add(vector=at_cosine(1.0))
    near, far = await server.add(vector=at_cosine(0.9)), await server.add(vector=at_cosine(0.5))

    async def ids(**body: Any) -> list[str]:
        answer = await server.client.post(LIKE, json={"image_id": given, **body})
        return [item["image_id"] for item in answer.json()["items"]]

    assert await ids() == [near]
    assert await ids(min_similarity=0.4) == [near, far]
    file = {"file": ("a.jpg", JPEG_OF_FIRST)}
    for form, expected in (({}, [given, near]), ({"min_similarity": "0.4"}, [given, near, far])):
        answer = await server.client.post(LIKE, files=file, data=form)
        assert [item["image_id"] for item in answer.json()["items"]] == expected


@pytest.mark.parametrize("value", ["1.1", "-2", "x", "nan", "1e9", ""])
async def test_a_similarity_is_a_cosine(server: Server, value: str) -> None:
    """Other numbers and words are refused, in the query, the form and JSON."""
    refused(await server.client.get(SEARCH, params={"q": "a", "min_similarity": value}), 422, "invalid-field")
    form = await server.client.post(LIKE, files={"file": ("a", JPEG_OF_FIRST)}, data={"min_similarity": value})
    refused(form, 422, "invalid-field")
    body = {"image_id": new_image_id(), "min_similarity": value}
    refused(await server.client.post(LIKE, json=body), 422, "invalid-field")


@pytest.mark.parametrize(
    ("query", "known", "way"),
    [
        ("due", {"text": "Total Due 41.20"}, "text"),
        ('"total due"', {"text": "TOTAL  due 41.20"}, "text"),
        ("cafe", {"text": "das Café"}, "text"),
        ("buses", {"labels": ("bus",)}, "label"),
        ("invoice", {"filename": "Invoice-2026.pdf.png"}, "filename"),
        ("summer", {"tags": ("Summer",)}, "tag"),
        ("holiday", {"category": "holiday"}, "category"),
        ("berlin", {"context": {"place": {"city": "Berlin"}}}, "context"),
    ],
)
async def test_words_match_everything_written_about_an_image(
    server: Server, query: str, known: dict[str, Any], way: str
) -> None:
    """Text, labels in singular and plural, file name, tags, category and metadata are searched, and named."""
    image_id = await server.add(**known)
    await server.add(text="something else", labels=("zebra",), filename="x.png")
    (item,) = (await server.search(query)).items
    assert (item.image_id, item.matched) == (image_id, (way,))
    assert (item.text is not None) is (way == "text")


async def test_a_phrase_matches_in_order_only(server: Server) -> None:
    """Words in double quotes match next to each other."""
    image_id = await server.add(text="open all day")
    await server.add(text="all open day")
    assert [item.image_id for item in (await server.search('"open all"')).items] == [image_id]
    assert len((await server.search("open all")).items) == 2


async def test_quotes_are_not_part_of_the_meaning(server: Server) -> None:
    """The encoder gets the words without quotes; the answer repeats the query as sent."""
    answer = await server.search('a "red  bicycle" “here”')
    assert server.encoder.asked == ["a red bicycle here"]
    assert answer.query == 'a "red bicycle" “here”'
    refused(await server.client.get(SEARCH, params={"q": '" "'}), 422, "invalid-field")
