"""The OCR engines on pages with known text, the policies on real photos, and the OCR agent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytesseract
import pytest
from PIL import Image, ImageDraw, ImageFont

from agents.core.text.geometry import Polygon, frame_of
from agents.core.text.page import Page
from agents.models import easyocr_reader
from agents.models.easyocr_reader import EasyocrReader, _in_bands, find_easyocr
from agents.models.ocr_engines import Reading, Rules, open_engines
from agents.models.tesseract_reader import TesseractReader
from agents.models.weights import Unavailable, WrongAnswer
from agents.stages import ocr as agent
from schemas.events.facts import TEXT_LIMIT, TextRead
from schemas.stored.results import ReadText
from schemas.values import ErrorCode, StageReport, TextSpan
from streams.errors import EngineFailed, NotReady, Retryable
from streams.object_store.factory import open_files
from streams.settings import FilesSettings, ModelsSettings
from streams.stage import Announcement, Skip
from streams.telemetry.health_board import Condition
from tests.support.masters import missing_master, resources, store

pytestmark = pytest.mark.lengthy

COLUMN = (255, 580, 1260, 1030)  # the page's first ten lines that run over one column


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ModelsSettings:
    return ModelsSettings(dir=None, cache=tmp_path_factory.mktemp("cache"), download=False)


@pytest.fixture(scope="module")
def tesseract() -> TesseractReader:
    return TesseractReader()


@pytest.fixture(scope="module")
def easyocr(settings: ModelsSettings) -> EasyocrReader:
    return EasyocrReader(*find_easyocr(settings, ["en"]), settings)


@pytest.fixture(scope="module")
def cascade(tesseract: TesseractReader, easyocr: EasyocrReader) -> Reading:
    return Reading(Rules("cascade"), tesseract, easyocr, ())


@pytest.fixture(scope="module")
def picture(images_dir: Path) -> Callable[[str], Image.Image]:
    return lambda name: Image.open(images_dir / name).convert("RGB")


def text_of(spans: list[TextSpan]) -> str:
    return "\n".join(span.text for span in spans)


def error_rate(read: str, truth: str) -> float:
    """Return the character error rate in points: edits (Levenshtein 1966) per 100 characters, white space as one."""
    one, two = " ".join(read.split()), " ".join(truth.split())
    letters, steps = np.frombuffer(two.encode("utf-32-le"), np.uint32), np.arange(len(two) + 1)
    row = steps
    for i, letter in enumerate(one, 1):
        swapped = row[:-1] + (letters != ord(letter))
        without = np.concatenate(([i], np.minimum(row[1:] + 1, swapped)))
        row = np.minimum.accumulate(without - steps) + steps  # the cheapest run of insertions up to each place
    return 100 * int(row[-1]) / len(two)


@pytest.fixture(scope="module", params=["page", "column"])
def known(request: pytest.FixtureRequest, images_dir: Path) -> tuple[Image.Image, str]:
    """Return a typed page, or a column of a newspaper, and its text."""
    folder = images_dir / "ocr"
    if request.param == "page":
        return Image.open(folder / "phototest.tif").convert("RGB"), (folder / "phototest.gold.txt").read_text()
    page = (folder / "8087_054.3B.txt").read_text(errors="replace")
    column = Image.open(folder / "8087_054.3B.tif").convert("RGB").crop(COLUMN)
    return column, page[page.index('"This is Greater') : page.index("that historians")]


def test_tesseract_reads_as_well_as_when_called_directly(
    tesseract: TesseractReader, known: tuple[Image.Image, str]
) -> None:
    """On pages with known text the error rate is at most a point above that of Tesseract's own plain text."""
    image, gold = known
    direct = error_rate(pytesseract.image_to_string(image), gold)
    assert error_rate(text_of(tesseract.read(image)), gold) <= direct + 1
    reading = Reading(Rules("tesseract"), tesseract, None, ())
    assert error_rate(text_of(reading.read(image)), gold) <= direct + 1


def test_easyocr_reads_as_well_as_when_called_directly(
    easyocr: EasyocrReader, settings: ModelsSettings, known: tuple[Image.Image, str]
) -> None:
    """With CRAFT converted and run on a small copy first, the error rate is at most a point above EasyOCR's own."""
    import easyocr as package  # noqa: PLC0415

    direct = package.Reader(
        ["en"], gpu=False, verbose=False, download_enabled=False,
        model_storage_directory=str(find_easyocr(settings, ["en"])[0].path.parent),
        user_network_directory=str(settings.cache),
    )  # fmt: skip
    image, truth = known
    theirs = " ".join(text for _, text, _ in direct.readtext(np.asarray(image)))
    assert error_rate(text_of(easyocr.read(image)), truth) <= error_rate(theirs, truth) + 1


def test_an_upside_down_page_is_rotated_and_its_spans_match_the_image(
    tesseract: TesseractReader, images_dir: Path, picture: Callable[[str], Image.Image]
) -> None:
    """An upside-down page reads like the upright one; its first line starts at the image's lower right."""
    gold = (images_dir / "ocr" / "phototest.gold.txt").read_text()
    image = picture("ocr/phototest-rotated-180.png")
    spans = tesseract.read(image)
    assert error_rate(text_of(spans), gold) < 2
    first, last = frame_of(spans[0].polygon), frame_of(spans[-1].polygon)
    assert first.top > last.top
    assert spans[0].polygon[0] == (first.right, first.bottom)


def test_bands_of_a_large_image_equal_the_whole(easyocr: EasyocrReader) -> None:
    """CRAFT over bands finds the same lines as CRAFT over a whole page."""
    page = Image.new("RGB", (500, 900), "white")
    draw = ImageDraw.Draw(page)
    for row in range(12):
        draw.text((40, 20 + 72 * row), f"line number {row}", fill="black", font=ImageFont.load_default(32))
    assert len(easyocr.find(page.crop((0, 0, 500, 450)))) == 6
    found = sorted(frame_of(box).top for box in easyocr._detect(np.asarray(page), 900))
    assert len(found) == 12
    assert max(abs(top - (20 + 72 * row)) for row, top in enumerate(found)) < 20


def test_bands_are_joined_row_by_row() -> None:
    """A map whose rows depend only on themselves is the same from bands as from the whole."""
    image = np.arange(1300, dtype=np.float32)[None, None, :, None].repeat(3, axis=1).repeat(8, axis=3)

    def half(band: np.ndarray) -> np.ndarray:
        return band[:, 0, ::2, ::2, None]

    assert np.array_equal(_in_bands(image, half), half(image))


def test_cascade_reads_signs_that_tesseract_cannot(cascade: Reading, picture: Callable[[str], Image.Image]) -> None:
    """Street and road signs in photos are read with EasyOCR, and each span names its engine."""
    spans = cascade.read(picture("ocr/chinese.jpg"))
    assert "Yuyuan Rd." in text_of(spans)
    assert "315" in text_of(spans)
    assert "easyocr" in {span.engine for span in spans}
    road = text_of(cascade.read(picture("ocr/korean.png")))
    assert "Seoul" in road
    assert "Pyeongyang" in road
    assert "205Km" in road


def test_cascade_leaves_pages_to_tesseract(
    cascade: Reading, picture: Callable[[str], Image.Image], images_dir: Path
) -> None:
    """A typed page is read by Tesseract alone, with Tesseract's error rate."""
    spans = cascade.read(picture("ocr/phototest.tif"))
    assert {span.engine for span in spans} == {"tesseract"}
    assert error_rate(text_of(spans), (images_dir / "ocr" / "phototest.gold.txt").read_text()) < 1


@pytest.mark.parametrize("photo", ["photos/owl.jpg", "photos/cat_720p.jpg"])
def test_no_text_is_a_result(cascade: Reading, picture: Callable[[str], Image.Image], photo: str) -> None:
    """A photo without text gives no spans and no error."""
    assert cascade.read(picture(photo)) == []


def test_hybrid_merges_both_engines(
    tesseract: TesseractReader, easyocr: EasyocrReader, picture: Callable[[str], Image.Image]
) -> None:
    """Every line of a poster is read once, not once by each engine."""
    text = text_of(Reading(Rules("hybrid"), tesseract, easyocr, ()).read(picture("ocr/english.png")))
    assert text.lower().count("reduce your risk") == 1
    assert "hand rub" in text
    assert "Cover nose and mouth" in text


async def test_a_large_image_is_read_scaled_down_with_full_size_polygons(
    settings: ModelsSettings, tmp_path: Path
) -> None:
    """Above `max_side` the image is read smaller; polygons are in the original's pixels."""
    large = Image.new("RGB", (2400, 600), "white")
    ImageDraw.Draw(large).text((1200, 200), "DARKROOM", fill="black", font=ImageFont.load_default(160))
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        chosen = agent.OcrSettings(policy="tesseract", max_side=1200)
        async with agent.STAGE.open(chosen, resources(files, settings, tmp_path)) as tools:
            result = await agent.read_text(await store(files, large), tools)
    assert isinstance(result, ReadText)
    (span,) = result.spans
    assert span.text == "DARKROOM"
    assert frame_of(span.polygon).left == pytest.approx(1210, abs=30)


@pytest.mark.parametrize(("name", "error"), [("TERM", Retryable), ("KILL", Retryable), ("SEGV", OSError)])
def test_a_page_is_retried_when_a_signal_killed_its_reader(
    tesseract: TesseractReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception]
) -> None:
    """A Tesseract killed by a signal from outside is retried; one that crashes on its own is an error of the page."""
    killed = tmp_path / "tesseract"
    killed.write_text(f"#!/bin/sh\nkill -{name} $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", str(killed))
    with pytest.raises(error):
        tesseract.read(Image.new("RGB", (200, 100), "white"))


def test_an_unknown_language_is_unavailable() -> None:
    """The reason names a language that Tesseract lacks."""
    with pytest.raises(Unavailable, match="xyz"):
        TesseractReader(["xyz"])


def test_without_one_engine_the_other_reads(settings: ModelsSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without EasyOCR's weights `cascade` reads with Tesseract and reports the gap; unavailable if all are required."""
    monkeypatch.setattr(easyocr_reader, "find_easyocr", _nowhere)
    reading = open_engines(settings, Rules("cascade"))
    assert reading.easyocr is None
    assert reading.missing == ("easyocr: no weights",)
    with pytest.raises(Unavailable, match="no weights"):
        open_engines(settings, Rules("cascade", all_engines=True))


def _nowhere(_settings: ModelsSettings, _languages: tuple[str, ...]) -> None:
    raise Unavailable("no weights")


def test_an_engine_that_misreads_the_golden_word_is_detected(
    settings: ModelsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that reads nothing from the drawn word fails the check."""
    monkeypatch.setattr(TesseractReader, "read", lambda _self, _image: [])
    with pytest.raises(WrongAnswer, match="DARKROOM"):
        open_engines(settings, Rules("tesseract"))


async def test_the_agent_reads_and_announces(
    settings: ModelsSettings, picture: Callable[[str], Image.Image], tmp_path: Path
) -> None:
    """The result has a page's text and its engines; the fact has at most the limit of characters."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, settings, tmp_path)
        async with agent.STAGE.open(agent.OcrSettings(policy="tesseract"), lent) as tools:
            event = await store(files, picture("ocr/phototest.tif"))
            result = await agent.read_text(event, tools)
            assert isinstance(result, ReadText)
            assert "The quick brown dog jumped" in result.content
            assert result.engines[0].name.startswith("tesseract 5")
            assert agent.STAGE.probe is not None
            await agent.STAGE.probe(tools)
            with pytest.raises(OSError, match="cannot identify"):
                await agent.read_text(await store(files, b"no image"), tools)
            assert agent.STAGE.once is not None
            long = result.model_copy(update={"content": "x" * (TEXT_LIMIT + 1)})
            report = StageReport(stage="ocr", version="1", attempts=1, duration_ms=1)
            ((_, fact),) = agent.STAGE.once.announce(event, long, Announcement(report, event.image.master)).events
            assert isinstance(fact, TextRead)
            assert (len(fact.content), fact.span_count) == (TEXT_LIMIT, 8)
            assert agent.STAGE.once.parameters(event, tools)["policy"] == "tesseract"
        assert lent.health.condition() is Condition.OK


async def test_an_engine_s_error_fails_the_image(
    settings: ModelsSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an engine raises on an image fails that image with a code, and the agent's own check names the engine."""

    def broken(_self: TesseractReader, _image: Image.Image) -> Page:
        raise ValueError("could not convert string to float")

    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, settings, tmp_path)
        async with agent.STAGE.open(agent.OcrSettings(policy="tesseract"), lent) as tools:
            monkeypatch.setattr(TesseractReader, "page", broken)
            with pytest.raises(EngineFailed, match="could not convert"):
                await agent.read_text(await store(files, Image.new("RGB", (40, 40), "white")), tools)
            with pytest.raises(ValueError, match="could not convert"):
                await agent.probe(tools)


THIN = [(1, 1), (3, 3), (2000, 8), (8, 2000), (2000, 1), (1, 2000), (4000, 20), (20, 4000), (700, 9), (9000, 30)]


@pytest.mark.parametrize("size", THIN)
@pytest.mark.parametrize("policy", ["easyocr", "hybrid"])
def test_an_image_of_a_few_pixels_has_no_text_and_no_error(
    tesseract: TesseractReader, easyocr: EasyocrReader, size: tuple[int, int], policy: str
) -> None:
    """Neither engine fails on images a few pixels high or wide, empty or full of edges."""
    edges = np.indices((size[1], size[0])).sum(axis=0) // 3 % 2 * 255
    for image in (Image.new("RGB", size, "white"), Image.fromarray(edges.astype(np.uint8)).convert("RGB")):
        spans = Reading(Rules(policy), tesseract if policy == "hybrid" else None, easyocr, ()).read(image)
        assert all(span.confidence >= 0.3 for span in spans)


@pytest.mark.parametrize(
    "box",
    [((0, 0), (0, 0), (0, 0), (0, 0)), ((5, 5), (60, 5), (60, 5), (5, 5)), ((-9, -9), (-2, -9), (-2, -2), (-9, -2)),
     ((300, 10), (340, 10), (340, 30), (300, 30)), ((10, 10), (60, 11), (60, 12), (10, 11)),
     ((0, 0), (200, 0.5), (200, 1), (0, 0.5))],
)  # fmt: skip
def test_boxes_without_pixels_have_no_text(easyocr: EasyocrReader, box: Polygon) -> None:
    """Boxes that are empty or outside of the image are skipped; the others are read."""
    word = Image.new("RGB", (200, 60), "white")
    ImageDraw.Draw(word).text((20, 10), "WORD", fill="black", font=ImageFont.load_default(36))
    whole = ((0.0, 0.0), (200.0, 0.0), (200.0, 60.0), (0.0, 60.0))
    spans = easyocr.read_at(word, [box, whole])
    assert "WORD" in {span.text for span in spans}


async def test_without_any_engine_the_agent_skips_or_refuses_to_start(tmp_path: Path) -> None:
    """If no engine reads the language, each image is skipped with the reason; if required, the agent does not start."""
    settings = ModelsSettings(dir=None, cache=tmp_path / "cache", download=False)
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, settings, tmp_path)
        async with agent.STAGE.open(agent.OcrSettings(languages=("xyz",)), lent) as tools:
            answer = await agent.read_text(missing_master(), tools)
        assert isinstance(answer, Skip)
        assert (answer.code, answer.reported) == (ErrorCode.MODEL_UNAVAILABLE, True)
        assert lent.health.condition() is Condition.DEGRADED
        with pytest.raises(NotReady, match="xyz"):
            async with agent.STAGE.open(agent.OcrSettings(languages=("xyz",), required=True), lent):
                pytest.fail("the stage opened")
