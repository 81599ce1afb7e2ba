"""The text of documents: sanitized as uploaded, read page by page by the real engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agents.stages import ocr, sanitizer
from agents.stages.ocr import OcrSettings, Tools, read_text
from agents.stages.sanitizer import SanitizerSettings, sanitize_image
from schemas.events.facts import ImageSanitized, TextRead
from schemas.stored.results import ReadText, SanitizedImage
from streams.errors import ObjectGone
from streams.settings import ModelsSettings
from streams.stage import Announcement
from tests.support import documents
from tests.support.image_stages import REPORT, opened, sanitized, uploaded
from tests.support.masters import resources

WORDS = ("Invoice", "Delivery", "Receipt", "Contract")


@asynccontextmanager
async def _read_by(data: bytes, folder: Path, settings: OcrSettings) -> AsyncIterator[tuple[ImageSanitized, Tools]]:
    """Sanitize a document; yield its event, and the tools of OCR on the same store."""
    async with opened(sanitizer.STAGE, folder, SanitizerSettings(concurrency=1)) as (files, tools):
        event = await uploaded(files, data)
        image = await sanitize_image(event, tools)
        assert isinstance(image, SanitizedImage)
        lent = resources(files, ModelsSettings(dir=None, cache=folder / "cache", download=False), folder)
        async with ocr.STAGE.open(settings, lent) as reader:
            yield sanitized(event, image), reader


@pytest.mark.parametrize(("kind", "policy"), [("tiff", "tesseract"), ("pdf", "tesseract"), ("written", "auto")])
async def test_every_page_is_read_in_order(kind: str, policy: str, tmp_path: Path) -> None:
    """The text is that of all pages; each page has its own size and lines, in its own pixels."""
    pages = [documents.page(f"{word} {number}", (900, 300 + number)) for number, word in enumerate(WORDS, 1)]
    titles = [f"{word} {number}" for number, word in enumerate(WORDS, 1)]
    data = documents.written_pdf(titles, (400, 300)) if kind == "written" else documents.WRITERS[kind](pages)
    settings = OcrSettings(policy=policy)
    async with _read_by(data, tmp_path, settings) as (event, tools):
        text = await read_text(event, tools)
    assert isinstance(text, ReadText)
    assert text.content.split("\f") == titles
    assert [page.content for page in text.pages] == titles
    assert [page.number for page in text.pages] == [1, 2, 3, 4]
    sizes = [(event.image.width, event.image.height), *((page.width, page.height) for page in event.image.pages)]
    assert [(page.width, page.height) for page in text.pages] == sizes
    for page in text.pages:
        assert page.spans
        assert all(0 <= x <= page.width and 0 <= y <= page.height for s in page.spans for x, y in s.polygon)
    assert (text.spans, text.blocks) == (text.pages[0].spans, text.pages[0].blocks)
    assert text.notes == ()


async def test_the_fact_counts_the_lines_of_all_pages(tmp_path: Path) -> None:
    """Number of lines and mean confidence are those of the document; the text is found by a word of the last page."""
    data = documents.scanned_pdf([documents.page(word) for word in WORDS])
    async with _read_by(data, tmp_path, OcrSettings(policy="tesseract")) as (event, tools):
        text = await read_text(event, tools)
        assert isinstance(text, ReadText)
        assert ocr.STAGE.once is not None
        ((_, fact),) = ocr.STAGE.once.announce(event, text, Announcement(REPORT, event.original)).events
    assert isinstance(fact, TextRead)
    spans = [span for page in text.pages for span in page.spans]
    letters = sum(len(span.text) for span in spans)
    assert fact.span_count == len(spans) == len(WORDS)
    assert fact.mean_confidence == pytest.approx(sum(s.confidence * len(s.text) for s in spans) / letters)
    assert WORDS[-1] in fact.content


async def test_pages_beyond_the_bound_are_a_note(tmp_path: Path) -> None:
    """Two pages of four are read, and the others named; what was not read has no form feed."""
    data = documents.scanned_pdf([documents.page(word) for word in WORDS])
    async with _read_by(data, tmp_path, OcrSettings(policy="tesseract", max_pages=2)) as (event, tools):
        text = await read_text(event, tools)
    assert isinstance(text, ReadText)
    assert text.content == "\f".join(WORDS[:2])
    assert text.notes == ("pages not read, beyond a limit or damaged: 3 to 4",)


async def test_pages_that_do_not_fit_the_deadline_are_a_note(tmp_path: Path) -> None:
    """Reading ends in time with the pages that are read; the first one always is."""
    data = documents.scanned_pdf([documents.page(word) for word in WORDS])
    async with _read_by(data, tmp_path, OcrSettings(policy="tesseract", deadline_s=1e-9)) as (event, tools):
        text = await read_text(event, tools)
    assert isinstance(text, ReadText)
    assert text.content == WORDS[0]
    assert [page.number for page in text.pages] == [1]
    assert text.notes == ("pages not read, beyond a limit or damaged: 2 to 4",)


async def test_documents_with_the_same_first_page_have_texts_of_their_own(tmp_path: Path) -> None:
    """A stored text is named by the original and all pages, so that neither reuse nor deletion mixes two documents."""
    cover = documents.page("Cover")
    first, second = (documents.tiff([cover, documents.page(word)]) for word in WORDS[:2])
    single = documents.tiff([cover])
    settings = OcrSettings(policy="tesseract")
    named = list[tuple[str, object]]()
    masters = set[str]()
    for number, data in enumerate((first, second, single)):
        async with _read_by(data, tmp_path / str(number), settings) as (event, tools):
            once = ocr.STAGE.once
            assert once is not None
            masters.add(event.image.master.sha256)
            named.append((once.input(event).sha256, dict(once.parameters(event, tools))))
            expected = event.original if event.image.pages else event.image.master
            assert once.input(event) == expected
    assert len(masters) == 1
    assert len({sha256 for sha256, _ in named}) == 3
    texts = [parameters for _, parameters in named]
    assert texts[0] != texts[1]
    assert isinstance(texts[2], dict)
    assert not {"pages", "max_pages", "deadline_s"} & texts[2].keys()


async def test_a_page_that_is_gone_ends_the_event(tmp_path: Path) -> None:
    """An image deleted while its pages are read is no failure."""
    data = documents.scanned_pdf([documents.page(word) for word in WORDS[:3]])
    async with _read_by(data, tmp_path, OcrSettings(policy="tesseract")) as (event, tools):
        await tools.files.delete(event.image.pages[1].object.key)
        with pytest.raises(ObjectGone):
            await read_text(event, tools)
