"""The default engine on drawn pages and real photos: orientation, order, small text, scripts, and no invented text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytesseract
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydantic import JsonValue

from agents.core.text.boxes import TextBox, crop
from agents.core.text.geometry import frame_of
from agents.models.ocr_engines import Engines, Reading, Rules, manifest_engines, open_engines
from agents.models.ppocr_engine import PpocrEngine
from agents.models.ppocr_networks import open_networks
from agents.models.ppocr_reader import PpocrReader
from agents.models.script_reader import ScriptReader
from agents.models.weights import Unavailable
from agents.stages import ocr as agent
from schemas.events.facts import ImageSanitized
from schemas.stored.results import ReadText
from schemas.values import Profile
from streams.object_store.factory import open_files
from streams.settings import FilesSettings, ModelsSettings
from streams.stage import Skip
from tests.support.masters import resources, store

pytestmark = pytest.mark.lengthy

DRAWN = Path(__file__).parents[3] / "data" / "text"
TEXT = (
    "The harbour office closes at six on weekdays", "and earlier in winter when the ferries stop.",
    "Visitors who arrive late should ring the bell", "beside the blue door and wait for the porter.",
)  # fmt: skip
PACKS = ("ko", "ru", "ar")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ModelsSettings:
    return ModelsSettings(dir=None, cache=tmp_path_factory.mktemp("cache"), download=False)


@pytest.fixture(scope="module")
def engines(settings: ModelsSettings) -> Engines:
    return Engines(settings)


@pytest.fixture(scope="module")
def reading(engines: Engines) -> Reading:
    return engines.reading(Rules("auto", packs=PACKS))


@pytest.fixture(scope="module")
def picture(images_dir: Path) -> Callable[[str], Image.Image]:
    return lambda name: Image.open(images_dir / name).convert("RGB")


def drawn(lines: tuple[str, ...] = TEXT, size: int = 28, width: int = 800) -> Image.Image:
    page = Image.new("RGB", (width, 60 + int(size * 1.5) * len(lines)), "white")
    draw = ImageDraw.Draw(page)
    for row, text in enumerate(lines):
        draw.text((40, 30 + row * int(size * 1.5)), text, fill="black", font=ImageFont.load_default(size))
    return page


def scenery(width: int, height: int) -> Image.Image:
    """Return a photo-like background: smooth colours with some texture."""
    random = np.random.default_rng(7)
    samples = np.zeros((height, width, 3))
    for cells, weight in ((4, 110), (24, 60)):
        small = random.uniform(0, 1, (cells, cells, 3)).astype(np.float32)
        samples += cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) * weight
    return Image.fromarray(np.clip(samples + 30, 0, 255).astype(np.uint8))


def packed(language: str) -> None:
    """Skip the test if Tesseract lacks the pack of a language."""
    reader = ScriptReader((language,))
    if not reader.languages:
        pytest.skip(f"Tesseract has no pack of {language}; infra/setup.sh installs it (tesseract-ocr-…)")


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_rotated_page_reads_like_the_upright_one(reading: Reading, rotation: int) -> None:
    """Each quarter turn is found and reported, and polygons are in the given image."""
    page = drawn()
    answer = reading.answer(page.rotate(rotation, expand=True)).page  # rotate() is counterclockwise
    assert answer.content.splitlines() == list(TEXT)
    assert answer.rotation == rotation
    first = frame_of(answer.spans[0].polygon)
    assert (first.height > first.width) == (rotation in {90, 270})
    assert abs(answer.tilt) < 1


@pytest.mark.parametrize("tilt", [-14, -5, 8])
def test_a_tilted_page_is_read_and_its_tilt_is_reported(reading: Reading, tilt: int) -> None:
    """The lines of a tilted page are read in order."""
    page = drawn().rotate(-tilt, expand=True, fillcolor="white", resample=Image.Resampling.BICUBIC)
    answer = reading.answer(page).page
    assert answer.content.splitlines() == list(TEXT)
    assert answer.tilt == pytest.approx(tilt, abs=1)


def test_words_have_boxes_within_their_lines(reading: Reading) -> None:
    """Each word of a line has its place: they follow each other, and together they are the line."""
    answer = reading.answer(drawn()).page
    line = answer.spans[0]
    assert [word.text for word in line.words] == line.text.split()
    edges = [edge for word in line.words for edge in (frame_of(word.polygon).left, frame_of(word.polygon).right)]
    assert edges == sorted(edges)
    harbour = frame_of(line.words[1].polygon)
    font = ImageFont.load_default(28)
    assert harbour.left == pytest.approx(40 + font.getlength("The "), abs=8)
    assert harbour.right == pytest.approx(40 + font.getlength("The harbour"), abs=8)
    assert (line.language, line.script) == ("en", "Latn")


def test_columns_and_prices_are_read_in_order(reading: Reading) -> None:
    """Two columns are read one after the other, and the rows of a receipt row by row."""
    page = Image.new("RGB", (1400, 320), "white")
    page.paste(drawn(TEXT, 26, 690), (0, 0))
    other = ("Measurements were repeated three times on", "two machines and the median is reported",
             "below. Differences smaller than a twentieth", "are not discussed here.")  # fmt: skip
    page.paste(drawn(other, 26, 690), (700, 0))
    assert reading.answer(page).page.content.splitlines() == [*TEXT, *other]
    receipt = Image.new("RGB", (520, 220), "#f6f4ee")
    draw, font = ImageDraw.Draw(receipt), ImageFont.load_default(24)
    rows = (("Rye bread", "3.20"), ("Apple pie 2x", "7.80"), ("Coffee, large", "3.95"), ("Total", "14.95"))
    for row, (left, right) in enumerate(rows):
        draw.text((30, 20 + 46 * row), left, fill="#222", font=font)
        draw.text((490 - font.getlength(right), 20 + 46 * row), right, fill="#222", font=font)
    answer = reading.answer(receipt).page
    assert answer.content.splitlines() == [" ".join(row) for row in rows]


def test_small_text_in_a_large_photo_is_found_at_a_second_look(reading: Reading) -> None:
    """Letters of a hundredth of the photo's height are read, with polygons in full-size pixels."""
    photo = scenery(3000, 2000)
    ImageDraw.Draw(photo).text((2100, 1500), "Trail closed 0042", fill="white", font=ImageFont.load_default(26))
    answer = reading.answer(photo).page
    assert answer.content == "Trail closed 0042"
    assert frame_of(answer.spans[0].polygon).left == pytest.approx(2100, abs=15)


@pytest.mark.parametrize("photo", ["photos/owl.jpg", "photos/cat_720p.jpg", "photos/pets.jpg"])
def test_a_photo_without_text_has_none(reading: Reading, picture: Callable[[str], Image.Image], photo: str) -> None:
    """No character is invented in photos of animals."""
    assert reading.answer(picture(photo)).page.content == ""


def test_shapes_like_letters_are_not_text(reading: Reading) -> None:
    """Circles and lines over a photo-like background are not read as O, Q or 1."""
    photo = scenery(1200, 800)
    draw = ImageDraw.Draw(photo)
    for index in range(12):
        draw.ellipse((80 * index + 20, 60 * index % 700, 80 * index + 60 + 9 * index, 60 * index % 700 + 50), width=5)
    assert reading.answer(photo).page.content == ""


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 3), (2000, 8), (8, 2000), (2000, 1), (1, 2000), (4000, 20), (700, 9), (9000, 30)]
)
def test_an_image_of_a_few_pixels_has_no_text_and_no_error(reading: Reading, size: tuple[int, int]) -> None:
    """Thin and tiny images, empty or full of edges, are read without error and without text."""
    edges = np.indices((size[1], size[0])).sum(axis=0) // 3 % 2 * 255
    for image in (Image.new("RGB", size, "white"), Image.fromarray(edges.astype(np.uint8)).convert("RGB")):
        assert reading.answer(image).page.content == ""


def test_signs_in_photos_are_read(reading: Reading, picture: Callable[[str], Image.Image]) -> None:
    """Street signs are read with their Chinese characters, each line with its own language."""
    spans = reading.answer(picture("ocr/chinese.jpg")).page.spans
    found = {span.text: span.language for span in spans}
    assert found["愚园路"] == "zh"
    assert {"Yuyuan Rd.", "315", "309"} <= set(found)
    assert {span.engine for span in spans} == {"ppocr"}


@pytest.mark.parametrize(
    ("language", "script", "words"),
    [
        ("ru", "Cyrl", "Завтра утром мы едем на дачу."),
        ("ko", "Kore", "오늘은"),
        ("ar", "Arab", "المكتبة مغلقة يوم الاثنين"),
    ],
)
def test_another_script_is_read_by_its_pack(reading: Reading, language: str, script: str, words: str) -> None:
    """The script is found without being named, and the lines say their language and engine."""
    packed(language)
    page = reading.answer(Image.open(DRAWN / f"{language}.png").convert("RGB")).page
    assert words in page.content
    assert {(span.language, span.script, span.engine) for span in page.spans} == {(language, script, "tesseract")}
    assert page.spans[0].words[0].text == words.split(maxsplit=1)[0]


def test_without_its_pack_another_script_is_a_note_and_no_garbage(settings: ModelsSettings) -> None:
    """Russian without its pack gives no text under a wrong label, and a note names the script."""
    page = open_engines(settings, Rules("ppocr", packs=())).answer(Image.open(DRAWN / "ru.png").convert("RGB")).page
    assert page.content == ""
    (note,) = page.notes
    assert "2 lines" in note
    assert "Cyrl" in note


def test_japanese_and_german_say_so(reading: Reading) -> None:
    """Kana make a page Japanese, function words and letters German."""
    japanese = reading.answer(Image.open(DRAWN / "ja.png").convert("RGB")).page
    assert japanese.content == "図書館は月曜日に休みます。\nこの電車は東京駅まで行きますか。"
    assert {span.language for span in japanese.spans} == {"ja"}
    german = reading.answer(Image.open(DRAWN / "de.png").convert("RGB")).page
    assert "täglich außer sonntags" in german.content
    assert {span.language for span in german.spans} == {"de"}


def test_a_named_language_that_nothing_reads_is_unavailable_or_a_note(engines: Engines) -> None:
    """Alone it is refused by name; beside one that is read, the result notes it."""
    with pytest.raises(Unavailable, match="xyz"):
        engines.reading(Rules("auto", named=("xyz",), packs=PACKS))
    page = engines.reading(Rules("auto", named=("en", "xyz"), packs=PACKS)).answer(drawn()).page
    assert page.notes == ("no installed engine reads the language xyz",)
    assert {span.language for span in page.spans} == {"en"}


def test_engines_are_loaded_once_and_named_in_the_result(engines: Engines, reading: Reading) -> None:
    """Two policies share the engine; the result names each network, and the packs."""
    again = engines.reading(Rules("ppocr", packs=PACKS, named=("de",)))
    assert again.ppocr is reading.ppocr
    names = [engine.name for engine in reading.engines]
    assert names[:3] == ["ppocr-v6-small-detector", "ppocr-v6-small-recogniser", "ppocr-v2-line-direction"]
    assert names[3].startswith("tesseract ")
    assert all(len(engine.sha256) == 64 for engine in reading.engines)
    assert len(manifest_engines(Rules("ppocr"))) == 4


def test_auto_without_ppocr_is_tesseract_and_easyocr(settings: ModelsSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PP-OCR's weights `auto` reads as `cascade` and reports the gap; `ppocr` is unavailable."""

    def nothing(_settings: ModelsSettings, _asked: object) -> None:
        raise Unavailable("no weights")

    monkeypatch.setattr("agents.models.ocr_engines.open_networks", nothing)
    monkeypatch.setattr("agents.models.easyocr_reader.find_easyocr", nothing)
    instead = open_engines(settings, Rules("auto"))
    assert instead.ppocr is None
    assert instead.tesseract is not None
    assert instead.missing == ("ppocr: no weights", "easyocr: no weights")
    with pytest.raises(Unavailable, match="no weights"):
        open_engines(settings, Rules("ppocr"))


def test_onnx_runtime_agrees_with_openvino(settings: ModelsSettings, reading: Reading) -> None:
    """Both runtimes read the same letters at the same confidence; CUDA without a device is unavailable by name."""
    assert isinstance(reading.ppocr, PpocrEngine)
    pixels = cv2.cvtColor(np.asarray(drawn()), cv2.COLOR_RGB2BGR)
    other = PpocrReader(open_networks(settings, "onnxruntime"))
    corners = TextBox(np.array([[30, 20], [700, 20], [700, 70], [30, 70]], np.float32), 1.0).corners
    (one,), (two,) = (each.read(pixels, [corners]) for each in (reading.ppocr.reader, other))
    assert "".join(letter.text for letter in one) == "".join(letter.text for letter in two) == TEXT[0]
    assert [letter.confidence for letter in one] == pytest.approx([letter.confidence for letter in two], abs=0.02)
    with pytest.raises(Unavailable, match="CUDA"):
        open_networks(settings, "cuda")


def test_a_crashed_pack_fails_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tesseract's own crash on another script is an error of the image, not an empty answer."""
    reader = ScriptReader(PACKS)
    broken = tmp_path / "tesseract"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", str(broken))
    pixels = np.full((48, 400, 3), 255, np.uint8)
    strip = crop(pixels, np.array([[0, 0], [400, 0], [400, 48], [0, 48]], np.float32), 48)
    with pytest.raises(OSError, match="broken"):
        reader.read([strip])


async def test_the_stage_reads_with_what_a_profile_asks(settings: ModelsSettings, tmp_path: Path) -> None:
    """The default reads by script; a profile names policy and languages, which are in the key; an unknown one skips."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, settings, tmp_path)
        async with agent.STAGE.open(agent.OcrSettings(), lent) as tools:
            event = await store(files, drawn().rotate(90, expand=True))
            plain = await agent.read_text(event, tools)
            assert isinstance(plain, ReadText)
            assert plain.content.splitlines() == list(TEXT)
            assert (plain.rotation, plain.policy, len(plain.blocks)) == (90, "auto", 1)
            assert "torch" not in {engine.backend for engine in plain.engines}
            named = asking(event, policy="tesseract", languages=["en"])
            other = await agent.read_text(named, tools)
            assert isinstance(other, ReadText)
            assert {span.engine for span in other.spans} == {"tesseract"}
            assert {span.language for span in other.spans} == {"en"}
            skipped = await agent.read_text(asking(event, languages=["xyz"]), tools)
            assert isinstance(skipped, Skip)
            assert "xyz" in skipped.message
            assert agent.STAGE.once is not None
            keys = [dict(agent.STAGE.once.parameters(each, tools)) for each in (event, named)]
            assert keys[0]["engines"] != keys[1]["engines"]
            assert (keys[0]["policy"], keys[1]["policy"], keys[1]["named"]) == ("auto", "tesseract", ["en"])


async def test_a_bucket_has_its_own_languages(settings: ModelsSettings, tmp_path: Path) -> None:
    """A bucket's languages replace the setting's, a profile's replace both; an unknown one skips only its bucket."""
    languages = {"letters": ("de",), "runes": ("xyz",)}
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        lent = resources(files, settings, tmp_path)
        async with agent.STAGE.open(agent.OcrSettings(bucket_languages=languages), lent) as tools:
            event = await store(files, drawn())
            letter, rune = (event.model_copy(update={"bucket": bucket}) for bucket in languages)
            named = {
                (each.bucket, await languages_of(each, tools))
                for each in (event, letter, asking(letter, languages=["fr"]), asking(rune, languages=["fr"]))
            }
            assert named == {("default", "en"), ("letters", "de"), ("letters", "fr"), ("runes", "fr")}
            skipped = await agent.read_text(rune, tools)
            assert isinstance(skipped, Skip)
            assert "xyz" in skipped.message
            assert agent.STAGE.once is not None
            assert agent.STAGE.once.parameters(letter, tools) != agent.STAGE.once.parameters(event, tools)


async def languages_of(event: ImageSanitized, tools: agent.Tools) -> str:
    """Return the one language of what is read."""
    result = await agent.read_text(event, tools)
    assert isinstance(result, ReadText)
    (language,) = {span.language for span in result.spans}
    return language


def asking(event: ImageSanitized, **parameters: JsonValue) -> ImageSanitized:
    return event.model_copy(update={"profile": Profile(parameters={"ocr": parameters})})
