"""The barcodes stage: from a master to searchable, public values."""

from __future__ import annotations

from pathlib import Path

import pytest
import zxingcpp
from PIL import Image

from agents.indexing.record_facts import learn_completed
from agents.pipeline import stage
from agents.stages.barcodes import STAGE, BarcodesSettings, FoundBarcodes, find_barcodes
from agents.stages.indexer import Tools as IndexerTools
from agents.stages.indexer import index
from gateway.images.views import analysis
from schemas.events.facts import ImageSanitized, StageCompleted
from schemas.values import DEFAULT_STAGES, REQUIRED_STAGES, new_image_id
from streams.errors import EngineFailed, ObjectGone
from streams.read_model.records import Hit
from streams.stage import Announcement
from tests.support.barcodes import drawn
from tests.support.facts import Facts, ref, report
from tests.support.image_stages import opened
from tests.support.indexer import indexer_tools
from tests.support.masters import missing_master, store

Kind = zxingcpp.BarcodeFormat


def large(code: Image.Image) -> Image.Image:
    """Return an image of 5000 by 4000 pixels with a code at (3000, 2000)."""
    page = Image.new("RGB", (5000, 4000), "white")
    page.paste(code, (3000, 2000))
    return page


async def read(folder: Path, image: Image.Image | bytes, **settings: int) -> FoundBarcodes:
    async with opened(STAGE, folder, BarcodesSettings.model_validate(settings)) as (files, tools):
        return await find_barcodes(await store(files, image), tools)


@pytest.mark.parametrize("scale", [8, 1])
async def test_codes_of_a_large_image_are_in_its_own_pixels(tmp_path: Path, scale: int) -> None:
    """A large code is found in the image scaled down, one of a pixel a module at the second look."""
    code = drawn("https://example.org/", Kind.QRCode, scale=scale)
    (found,) = (await read(tmp_path, large(code), side=1024)).codes
    assert found.value == "https://example.org/"
    assert all(3000 <= x <= 3000 + code.width and 2000 <= y <= 2000 + code.height for x, y in found.polygon)


async def test_a_linear_code_far_askew_is_found(tmp_path: Path) -> None:
    """A code that lies between the directions its reader looks in is found."""
    code = drawn("5901234123457", Kind.EAN13).rotate(45, expand=True, fillcolor="white")
    (found,) = (await read(tmp_path, code)).codes
    assert found.value == "5901234123457"


async def test_an_image_without_codes_has_an_empty_result(tmp_path: Path) -> None:
    """No code is a result."""
    for size in ((1, 1), (1, 3000), (400, 300)):
        assert (await read(tmp_path, Image.new("RGB", size, "grey"))).codes == ()


async def test_the_number_of_codes_is_limited(tmp_path: Path) -> None:
    """More codes than the setting allows are left out."""
    page = Image.new("RGB", (900, 300), "white")
    for number in range(3):
        page.paste(drawn(str(number), Kind.QRCode), (300 * number, 20))
    assert len((await read(tmp_path, page, max_codes=2)).codes) == 2


async def test_missing_and_broken_masters_are_errors_of_the_event(tmp_path: Path) -> None:
    """A missing master is gone; bytes that are no image fail the engine."""
    async with opened(STAGE, tmp_path) as (files, tools):
        with pytest.raises(ObjectGone):
            await find_barcodes(missing_master(), tools)
        with pytest.raises(EngineFailed):
            await find_barcodes(await store(files, b"no image"), tools)


async def test_the_library_and_the_settings_name_the_result(tmp_path: Path) -> None:
    """Another size of the first look, limit or version of the library is another result."""
    assert STAGE.once is not None
    async with opened(STAGE, tmp_path) as (_, tools):
        parameters = STAGE.once.parameters(missing_master(), tools)
    assert parameters["zxing-cpp"]
    assert parameters.keys() == {"side", "max_codes", "zxing-cpp"}


def test_an_image_passes_it_only_if_its_profile_says_so() -> None:
    """The stage may be named, and is in no default profile: images of other producers do not wait for it."""
    assert "barcodes" in REQUIRED_STAGES
    assert DEFAULT_STAGES == ("sanitizer", "resizer", "ocr", "detector", "embedder")


async def test_values_are_public_and_found_by_their_words(tmp_path: Path) -> None:
    """Clients see each code under `analysis.barcodes`; its text, not its base64, is found by words."""
    async with opened(STAGE, tmp_path) as (files, tools):
        page = Image.new("RGB", (900, 300), "white")
        page.paste(drawn("5901234123457", Kind.EAN13), (10, 20))
        page.paste(drawn(b"\x00\xff\xfe", Kind.QRCode), (600, 20))
        event = await store(files, page)
        result = await find_barcodes(event, tools)
    image = new_image_id()
    sanitized = Facts(image, stages=("sanitizer", "barcodes")).sanitized()
    assert isinstance(sanitized, ImageSanitized)
    assert STAGE.once is not None
    emitted = STAGE.once.announce(sanitized, result, Announcement(report("barcodes"), ref("b")))
    ((_, fact),) = emitted.events
    assert isinstance(fact, StageCompleted)
    assert learn_completed(fact, stage).keys == {"codes": ["5901234123457"]}
    async with indexer_tools(tmp_path / "index", stage) as indexing:
        await index(sanitized, indexing)
        await index(fact, indexing)
        (hit,) = await _search(indexing, fact.owner, "5901234123457")
        assert (hit.record.image_id, hit.matched) == (image, ("code",))
        assert await _search(indexing, fact.owner, "AP") == []
        found = analysis(hit.record)["barcodes"]["codes"]
    assert isinstance(found, list)
    assert found == [code.model_dump(mode="json") for code in result.codes]
    assert {code["encoding"] for code in found if isinstance(code, dict)} == {"text", "base64"}


async def _search(tools: IndexerTools, owner: str, words: str) -> list[Hit]:
    return list(await tools.read_model.search_words(owner, words, limit=5))
