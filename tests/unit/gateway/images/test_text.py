"""The text of an image over HTTP: every format, and what is answered before and without a text."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import fromstring

import httpx
import pypdfium2
import pytest
from PIL import Image

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.client.clients import AsyncDarkroom
from schemas.http.jobs import TextFormat
from schemas.stored.results import PageImage, ReadText, TextPage
from schemas.values import (
    DEFAULT_OWNER,
    ImageId,
    ImageState,
    Lineage,
    ObjectRef,
    Rendition,
    StageState,
    TextSpan,
    new_image_id,
)
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, result_key
from streams.object_store.protocol import FileStore
from streams.object_store.results import StoredResult
from streams.process.http_server import serving
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord, StageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Sink, StubReadiness, client_of, refused, settings
from tests.support.read_models import merge

SPAN = TextSpan(
    text="Hello <wörld>",
    confidence=0.75,
    polygon=((10, 10), (270, 10), (270, 40), (10, 40)),
    engine="ppocr",
)
PAGE = TextPage(width=400, height=300, content="Hello <wörld>", spans=(SPAN,))
READ = ReadText(content="Hello <wörld>", spans=(SPAN,), policy="auto")
TWO_PAGES = ReadText(
    content="one\ftwo", spans=(SPAN,), policy="auto", pages=(PAGE, PAGE.model_copy(update={"number": 3}))
)
LINEAGE = Lineage(
    input_sha256="0" * 64, stage="ocr", stage_version="2", code_version="1", parameters_hash="0", duration_ms=1,
    event_id="1", computed_at="2026-03-01T10:20:30Z",
)  # fmt: skip


@dataclass
class Server:
    """The embedded gateway on a real folder and the real in-process read model."""

    files: FileStore
    read_model: ReadModel
    client: httpx.AsyncClient

    async def image(self, read: ReadText | None = READ, **more: object) -> ImageId:
        """Store an image of one size with this text."""
        image_id = new_image_id()
        stages: dict[str, StageRecord] = {}
        if read is not None:
            stored = StoredResult(result=read.model_dump(mode="json"), lineage=LINEAGE)
            key = result_key(DEFAULT_OWNER, "0" * 64, "ocr", "2", image_id)
            ref = await self.files.put(key, stored.model_dump_json().encode(), content_type="application/json")
            stages["ocr"] = StageRecord(state=StageState.DONE, result=ref)
        image = await self.picture(image_key(image_id, 1, "large.webp"))
        large = Rendition(name="large", object=image, width=80, height=60, aspect_ratio=4 / 3, format="webp")
        known = {
            "image_id": image_id, "owner": DEFAULT_OWNER, "generation": 1, "state": ImageState.COMPLETED,
            "filename": "Brief \"ü\".jpg", "width": 400, "height": 300, "stages": stages,
            "renditions": (large,),
        }  # fmt: skip
        await self.read_model.begin(ImageRecord.model_validate(known | more))
        return image_id

    async def picture(self, key: str) -> ObjectRef:
        """Store a red image."""
        encoded = io.BytesIO()
        Image.new("RGB", (80, 60), "red").save(encoded, "WEBP", lossless=True)
        return await self.files.put(key, encoded.getvalue(), content_type="image/webp")

    async def get(self, image_id: str, wanted: str | None = None, **headers: str) -> httpx.Response:
        """Return the response for the text in a format."""
        query = {} if wanted is None else {"format": wanted}
        return await self.client.get(f"/api/v1/images/{image_id}/text", params=query, headers=headers)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        components = QueryComponents(files=files, events=Sink(), read_model=read_model, readiness=StubReadiness())
        async with client_of(embedded_app(settings(), components)) as client:
            yield Server(files, read_model, client)


async def test_json_is_the_text_of_the_result(server: Server) -> None:
    """Without a format, and as json: the text as the job's result has it."""
    image_id = await server.image()
    result = (await server.client.get(f"/api/v1/images/jobs/{image_id}.1/result")).json()
    for wanted in (None, "json"):
        answer = await server.get(image_id, wanted)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == result["text"]


async def test_every_format_has_its_type_and_text(server: Server) -> None:
    """Plain text, hOCR, ALTO and PDF have the words, and types under which a browser executes nothing."""
    image_id = await server.image()
    found = {wanted: await server.get(image_id, wanted) for wanted in ("text", "hocr", "alto", "pdf")}
    assert {wanted: (answer.status_code, answer.headers["content-type"]) for wanted, answer in found.items()} == {
        "text": (200, "text/plain; charset=utf-8"),
        "hocr": (200, "application/xhtml+xml"),
        "alto": (200, "application/xml"),
        "pdf": (200, "application/pdf"),
    }
    assert found["text"].text == "Hello <wörld>"
    hocr, alto = fromstring(found["hocr"].content), fromstring(found["alto"].content)
    assert "".join(hocr[1].itertext()).split() == ["Hello", "<wörld>"]
    assert [each.get("CONTENT") for each in alto.iter() if each.get("CONTENT")] == ["Hello", "<wörld>"]
    for wanted in ("text", "hocr", "alto"):
        assert found[wanted].headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert found[wanted].headers["x-content-type-options"] == "nosniff"


async def test_a_pdf_is_the_image_with_its_text(server: Server) -> None:
    """The PDF shows the largest size, has the text, and is named as the original."""
    answer = await server.get(await server.image(), "pdf")
    assert answer.headers["content-disposition"] == (
        "inline; filename=\"Brief ___.pdf\"; filename*=UTF-8''Brief%20%22%C3%BC%22.pdf"
    )
    (page,) = pypdfium2.PdfDocument(answer.content)
    assert page.get_textpage().get_text_range() == "Hello <wörld>"
    assert page.render(scale=0.1).to_pil().convert("RGB").getpixel((40, 30))[0] > 200
    assert page.render(scale=0.1).to_pil().convert("RGB").getpixel((40, 30))[1] < 60


async def test_a_pdf_of_an_image_without_sizes_shows_its_master(server: Server) -> None:
    """An image whose profile leaves the resizer out has its master; without one the text alone."""
    image_id = await server.image(renditions=())
    (page,) = pypdfium2.PdfDocument((await server.get(image_id, "pdf")).content)
    assert page.render(scale=0.1).to_pil().convert("RGB").getpixel((40, 30)) == (255, 255, 255)
    other = new_image_id()
    known = {"image_id": other, "owner": DEFAULT_OWNER, "generation": 1, "text": "found", "width": 400, "height": 300}
    master = await server.picture(image_key(other, 1, "master.png"))
    await server.read_model.begin(ImageRecord.model_validate({**known, "master": master}))
    (page,) = pypdfium2.PdfDocument((await server.get(other, "pdf")).content)
    assert page.render(scale=0.1).to_pil().convert("RGB").getpixel((40, 30))[1] < 60


@pytest.mark.parametrize("data", [None, b"no image"])
async def test_a_pdf_of_missing_or_broken_bytes_has_the_text_alone(server: Server, data: bytes | None) -> None:
    """If the image's bytes cannot be used the PDF still has the text."""
    image_id = await server.image()
    key = image_key(image_id, 1, "large.webp")
    await server.files.delete(key)
    if data is not None:
        await server.files.put(key, data, content_type="image/webp")
    (page,) = pypdfium2.PdfDocument((await server.get(image_id, "pdf")).content)
    assert page.get_textpage().get_text_range() == "Hello <wörld>"


async def test_no_object_of_another_image_is_shown(server: Server) -> None:
    """A record that names a file of another image does not reveal it."""
    foreign = await server.picture(image_key(new_image_id(), 1, "large.webp"))
    rendition = Rendition(name="large", object=foreign, width=80, height=60, aspect_ratio=4 / 3, format="webp")
    answer = await server.get(await server.image(renditions=(rendition,)), "pdf")
    (page,) = pypdfium2.PdfDocument(answer.content)
    assert page.render(scale=0.1).to_pil().convert("RGB").getpixel((40, 30)) == (255, 255, 255)


async def test_every_page_of_a_document_is_written(server: Server) -> None:
    """A text of several pages is that many pages in each format."""
    image_id = await server.image(TWO_PAGES)
    assert (await server.get(image_id, "text")).text == "one\ftwo"
    assert (await server.get(image_id, "hocr")).text.count('class="ocr_page"') == 2
    assert (await server.get(image_id, "alto")).text.count("<Page ") == 2
    assert len(pypdfium2.PdfDocument((await server.get(image_id, "pdf")).content)) == 2


@pytest.mark.parametrize(
    ("page", "shown"), [({}, True), ({"number": 2}, False), ({"size": 10**9}, False)], ids=["stored", "other", "large"]
)
async def test_a_pdf_of_a_document_shows_each_page(server: Server, page: dict[str, int], shown: bool) -> None:
    """Each page has the image of its number in the document; one that was left out or is too large has none."""
    image_id = await server.image(TWO_PAGES)
    stored = await server.picture(image_key(image_id, 1, "page-3.png"))
    known = PageImage(
        number=page.get("number", 3),
        object=stored.model_copy(update={"size": page.get("size", stored.size)}),
        width=80,
        height=60,
    )
    await merge(server.read_model, image_id, 1, {"pages": [known.model_dump(mode="json")]})
    answer = await server.get(image_id, "pdf")
    pictures = [each.render(scale=0.1).to_pil().convert("RGB") for each in pypdfium2.PdfDocument(answer.content)]
    assert [picture.getpixel((40, 30))[1] < 60 for picture in pictures] == [True, shown]


@pytest.mark.parametrize("wanted", ["json", "text", "hocr", "alto", "pdf"])
async def test_an_unchanged_text_is_not_sent_again(server: Server, wanted: str) -> None:
    """The entity tag of each format stays, and If-None-Match with it is answered 304."""
    image_id = await server.image()
    first = await server.get(image_id, wanted)
    assert first.headers["cache-control"] == "private, no-cache"
    again = await server.get(image_id, wanted, **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await server.get(image_id, wanted, **{"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, first.content)


@pytest.mark.parametrize("wanted", ["docx", "", "PDF"])
async def test_an_unknown_format_is_refused(server: Server, wanted: str) -> None:
    """422 names the parameter and the allowed values."""
    problem = refused(await server.get(await server.image(), wanted), 422, "invalid-field")
    assert problem.errors[0].field == "format"
    assert "'hocr'" in problem.errors[0].detail


async def test_an_image_without_a_text_is_refused(server: Server) -> None:
    """409 while the text may still be read, 404 if it never will be, 404 for an unknown image."""
    waiting = await server.image(None, state=ImageState.PROCESSING)
    assert refused(await server.get(waiting), 409, "not-finished")
    skipped = {"ocr": StageRecord(state=StageState.SKIPPED, reason="not-in-profile")}
    for stages, state in ((skipped, ImageState.PROCESSING), (skipped, ImageState.COMPLETED), ({}, ImageState.REJECTED)):
        never = await server.image(None, state=state, stages=stages)
        assert refused(await server.get(never, "pdf"), 404, "not-found")
    assert refused(await server.get(new_image_id()), 404, "not-found")


async def test_a_text_whose_result_is_gone_is_the_recorded_one(server: Server) -> None:
    """Without the stored result, every format has what the record has: the text without boxes."""
    image_id = await server.image(None, text="found")
    assert (await server.get(image_id)).json()["content"] == "found"
    assert (await server.get(image_id, "text")).text == "found"
    assert (await server.get(image_id, "hocr")).status_code == 200


async def test_the_client_gets_text_in_every_format(server: Server) -> None:
    """`text` returns the model, `text_as` the bytes of a format."""
    image_id = await server.image()
    components = QueryComponents(
        files=server.files, events=Sink(), read_model=server.read_model, readiness=StubReadiness()
    )
    async with (
        serving(embedded_app(settings(), components), "127.0.0.1", 0) as port,
        AsyncDarkroom(f"http://127.0.0.1:{port}") as darkroom,
    ):
        assert (await darkroom.text(image_id)).spans[0].text == "Hello <wörld>"
        starts: dict[TextFormat, bytes] = {"text": b"Hello", "hocr": b"<?xml", "alto": b"<?xml", "pdf": b"%PDF"}
        for wanted, start in starts.items():
            assert (await darkroom.text_as(image_id, wanted)).startswith(start)
