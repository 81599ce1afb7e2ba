"""Documents in the sanitizer: every page becomes a safe image of its own."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from agents.core.decode import Limits
from agents.core.sanitize import sanitize
from agents.maintenance.overdue import lost
from agents.stages.sanitizer import STAGE, SanitizerSettings, Tools, sanitize_image
from schemas.stored.results import SanitizedImage
from schemas.values import ErrorCode, ImageState, Lineage
from streams.object_store.keys import image_prefix, result_key
from streams.object_store.protocol import FileStore, delete_prefix
from streams.object_store.results import ResultStore
from streams.operations.rerun_events import work_of
from streams.read_model.records import ImageRecord, StageRecord
from streams.stage import Reject
from tests.support import documents
from tests.support.image_stages import opened, uploaded

ONE = SanitizerSettings(concurrency=1)
LINEAGE = Lineage(
    input_sha256="a" * 64, stage="sanitizer", stage_version="2", code_version="", parameters_hash="", duration_ms=0,
    event_id="", computed_at="2026-01-01T00:00:00Z",
)  # fmt: skip


def _five() -> list[Image.Image]:
    return [documents.page(f"Page {number}", (500, 160 + number)) for number in range(1, 6)]


async def _accepted(files: FileStore, tools: Tools, data: bytes) -> SanitizedImage:
    image = await sanitize_image(await uploaded(files, data), tools)
    assert isinstance(image, SanitizedImage), image
    return image


async def _refused(files: FileStore, tools: Tools, data: bytes) -> Reject:
    answer = await sanitize_image(await uploaded(files, data), tools)
    assert isinstance(answer, Reject)
    return answer


@pytest.mark.parametrize("kind", ["tiff", "pdf"])
async def test_every_page_is_stored_beside_the_master(kind: str, tmp_path: Path) -> None:
    """Page 1 is the master; pages 2 to 5 have keys of their own, the same ones at every try, and no metadata."""
    data = documents.WRITERS[kind](_five())
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, data)
        image = await sanitize_image(event, tools)
        assert await sanitize_image(event, tools) == image
        assert isinstance(image, SanitizedImage)
        bodies = [await files.get(page.object.key) for page in image.pages]
        stored = {info.key async for info in files.list(image_prefix(event.image_id))}
    assert (image.frames, [page.number for page in image.pages]) == (5, [2, 3, 4, 5])
    extension = image.master.key.rsplit(".", 1)[1]
    assert stored == {f"{image_prefix(event.image_id)}1/{name}.{extension}" for name in
                      ("master", "page-2", "page-3", "page-4", "page-5")}  # fmt: skip
    assert {ref.key for ref in image.objects().values()} == stored
    heights = set[int]()
    for page, body in zip(image.pages, bodies, strict=True):
        shown = Image.open(io.BytesIO(body))
        assert shown.size == (page.width, page.height)
        assert set(shown.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        heights.add(page.height)
    assert len(heights) == 4


async def test_the_first_pages_are_taken_up_to_the_bound(tmp_path: Path) -> None:
    """Of a longer document the result has the first pages, and says how many there are."""
    async with opened(STAGE, tmp_path, ONE.model_copy(update={"max_pages": 3})) as (files, tools):
        image = await _accepted(files, tools, documents.tiff(_five()))
    assert (image.frames, [page.number for page in image.pages]) == (5, [2, 3])
    few = ONE.model_copy(update={"max_document_pixels": 500 * (161 + 162)})
    async with opened(STAGE, tmp_path, few) as (files, tools):
        image = await _accepted(files, tools, documents.tiff(_five()))
    assert (image.frames, [page.number for page in image.pages]) == (5, [2])


async def test_the_bounds_are_part_of_the_results_name(tmp_path: Path) -> None:
    """Another bound or resolution computes a document again, and no other image."""
    of_documents = {"max_pages": 50, "max_document_pixels": 500_000_000, "pdf_dpi": 200}
    once = STAGE.once
    assert once is not None
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, b"x")
        for kind, is_document in (("image/jpeg", False), ("image/tiff", True), ("application/pdf", True), ("", True)):
            original = event.original.model_copy(update={"content_type": kind})
            named = once.parameters(event.model_copy(update={"original": original}), tools)
            assert (named.items() >= of_documents.items()) is is_document
            assert named.keys() - of_documents.keys() == {
                "max_bytes", "max_side", "max_pixels", "max_frames", "keep_capture_details",
            }  # fmt: skip


async def test_the_fonts_of_the_system_change_nothing(tmp_path: Path) -> None:
    """A font that the file does not contain looks the same in the child, which sees no fonts, and here."""
    data = documents.pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 100] /Contents 4 0 R"
        b" /Resources << /Font << /F 5 0 R >> >> >>",
        documents.stream(b"BT /F 40 Tf 10 30 Td (Harbour gg) Tj ET"),
        b"<< /Type /Font /Subtype /TrueType /BaseFont /NotoSansThai /Encoding /WinAnsiEncoding >>",
    )
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        image = await _accepted(files, tools, data)
        made = sanitize(data, Limits())
        assert await files.get(image.master.key) == made.master
    assert Image.open(io.BytesIO(made.master)).convert("L").getextrema() == (0, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO"])
async def test_an_animation_is_one_image(kind: str, tmp_path: Path) -> None:
    """Frames of an animation, or the views of a camera, are not stored."""
    out = io.BytesIO()
    first, *others = [documents.page(f"Frame {number}") for number in range(5)]
    first.save(out, kind, save_all=True, append_images=others)
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        assert (await _accepted(files, tools, out.getvalue())).pages == ()


async def test_a_page_that_cannot_be_decoded_is_left_out(tmp_path: Path) -> None:
    """A damaged second page costs that page; its number is missing among the others."""
    pages = [Image.effect_noise((300, 200), 90) for _ in range(3)]
    data = bytearray(documents.tiff(pages, compression="tiff_adobe_deflate"))
    ends = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\x78\x9c" or data[at : at + 2] == b"\x78\x01"]
    assert len(ends) >= 3
    second = next(at for at in ends if at > len(data) // 3 - 2000 and at > ends[0])
    data[second : second + 400] = bytes(400)
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        image = await _accepted(files, tools, bytes(data))
    assert (image.frames, [page.number for page in image.pages]) == (3, [3])


async def test_a_page_too_large_is_left_out(tmp_path: Path) -> None:
    """A later page beyond the limits of an image costs that page only."""
    data = documents.tiff([Image.new("L", size) for size in ((50, 50), (900, 10), (50, 60))])
    async with opened(STAGE, tmp_path, ONE.model_copy(update={"max_side": 800})) as (files, tools):
        image = await _accepted(files, tools, data)
    assert [page.number for page in image.pages] == [3]


HOSTILE = {
    "truncated": (documents.written_pdf(["a", "b"])[:-40], ErrorCode.TRUNCATED_IMAGE),
    "after a JPEG's start": (b"\xff\xd8\xff\xe0" + documents.written_pdf(["a"]), ErrorCode.TRUNCATED_IMAGE),
    "after a PNG's start": (b"\x89PNG\r\n\x1a\n" + documents.written_pdf(["a"]), ErrorCode.CORRUPT_IMAGE),
    "huge": (documents.blank_pdf(box=b"0 0 100000 100000"), ErrorCode.DIMENSIONS_TOO_LARGE),
    "no pages": (
        documents.pdf(b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Kids [] /Count 0 >>"),
        ErrorCode.CORRUPT_IMAGE,
    ),
    "pages that are not there": (
        documents.pdf(
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 900000 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>",
        ),
        ErrorCode.TOO_MANY_PIXELS,
    ),
}


async def test_hostile_pdfs_are_rejected_with_a_sentence(tmp_path: Path) -> None:
    """Each has its code, and none costs its child process."""
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        before = tools.sandbox.pids()
        for name, (data, code) in HOSTILE.items():
            rejected = await _refused(files, tools, data)
            assert rejected.code == code, name
            assert rejected.message.endswith("."), name
        assert tools.sandbox.pids() == before


def _ever_more_drawings(levels: int = 9) -> bytes:
    """Return a PDF whose page draws a form ten times, which draws another ten times, and so on."""
    forms = [
        documents.stream(
            b"/A Do " * 10,
            b"/Type /XObject /Subtype /Form /BBox [0 0 200 200] /Resources << /XObject << /A %d 0 R >> >>" % number,
        )
        for number in range(6, 5 + levels)
    ]
    last = documents.stream(b"0 0 100 100 re f " * 10, b"/Type /XObject /Subtype /Form /BBox [0 0 200 200]")
    return documents.pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R"
        b" /Resources << /XObject << /A 5 0 R >> >> >>",
        documents.stream(b"/A Do"),
        *forms,
        last,
    )


async def test_a_pdf_that_never_ends_is_rejected(tmp_path: Path) -> None:
    """Forms that draw each other 10^9 times are stopped by the limit of CPU time; the agent continues."""
    async with opened(STAGE, tmp_path, ONE.model_copy(update={"decode_cpu_s": 1})) as (files, tools):
        assert (await _refused(files, tools, _ever_more_drawings())).code == ErrorCode.DECODE_TIMEOUT
        assert (await _accepted(files, tools, documents.written_pdf(["a"]))).frames == 1


async def test_pages_that_take_too_long_together_are_rejected(tmp_path: Path) -> None:
    """The pages after the first must be decoded in what the first leaves of the deadline."""
    async with opened(STAGE, tmp_path, ONE.model_copy(update={"deadline_s": 1e-9})) as (files, tools):
        assert (await _refused(files, tools, documents.tiff(_five()))).code == ErrorCode.DECODE_TIMEOUT
        assert (await _accepted(files, tools, documents.tiff(_five()[:1]))).frames == 1


async def test_a_damaged_pdf_is_accepted_or_rejected(tmp_path: Path) -> None:
    """Whatever bytes are changed, in the page tree or in a drawing, no internal error occurs."""
    chance = random.Random("pdf")
    files_of = [documents.written_pdf(["a", "b", "c"]), documents.scanned_pdf(_five()), _ever_more_drawings(2)]
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        for data in files_of * 6:
            damaged = bytearray(data)
            for _ in range(chance.choice((1, 3, 30))):
                damaged[chance.randrange(8, len(data) - 7)] = chance.randrange(256)
            answer = await sanitize_image(await uploaded(files, bytes(damaged)), tools)
            assert isinstance(answer, SanitizedImage | Reject)


async def test_ten_thousand_pages_are_counted_and_the_first_are_taken(tmp_path: Path) -> None:
    """The number of pages costs little: the bound of pages decides what is drawn."""
    kids = b" ".join(b"%d 0 R" % number for number in range(3, 10_003))
    data = documents.pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count 10000 >>" % kids,
        *[b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] >>"] * 10_000,
    )
    async with opened(STAGE, tmp_path, ONE.model_copy(update={"max_pages": 4})) as (files, tools):
        image = await _accepted(files, tools, data)
    assert (image.frames, len(image.pages)) == (10_000, 3)


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


async def test_the_decoders_memory_does_not_grow_with_the_pages(tmp_path: Path) -> None:
    """Fifty pages take no more memory than three: one is decoded at a time."""
    peaks = []
    for count in (3, 50):
        data = documents.scanned_pdf([documents.page(f"Page {n}", (1240, 1754)) for n in range(count)], dpi=150)
        async with opened(STAGE, tmp_path, ONE) as (files, tools):
            (pid,) = tools.sandbox.pids()
            image = await _accepted(files, tools, data)
            assert len(image.pages) == count - 1
            assert tools.sandbox.pids() == (pid,)
            peaks.append(_peak_mb(pid) - 2 * len(data) / 2**20)
    assert peaks[1] < peaks[0] * 1.3


async def test_another_image_with_equal_bytes_gets_its_own_pages(tmp_path: Path) -> None:
    """A stored result is reused: its pages are copied to the other image, and outlive the first one."""
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        first, second = [await uploaded(files, documents.tiff(_five())) for _ in range(2)]
        image = await sanitize_image(first, tools)
        assert isinstance(image, SanitizedImage)
        results, key = ResultStore(files), result_key("default", "a" * 64, "sanitizer", "2", "0")
        await results.save(key, image, LINEAGE)
        found = await results.find(key, SanitizedImage, second)
        assert found is not None
        await delete_prefix(files, image_prefix(first.image_id))
        adopted = found.value
        assert [page.object.sha256 for page in adopted.pages] == [page.object.sha256 for page in image.pages]
        for ref in adopted.objects().values():
            assert ref.key.startswith(image_prefix(second.image_id))
            assert len(await files.get(ref.key)) == ref.size
        await files.delete(adopted.pages[2].object.key)
        assert await results.find(key, SanitizedImage, second) is None


async def test_a_record_names_the_pages(tmp_path: Path) -> None:
    """The event rebuilt from a record has the pages; one that is missing in the store is the sanitizer's to repair."""
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, documents.tiff(_five()))
        image = await sanitize_image(event, tools)
    assert isinstance(image, SanitizedImage)
    record = ImageRecord(
        image_id=event.image_id,
        owner=event.owner,
        generation=1,
        state=ImageState.COMPLETED,
        stages={"sanitizer": StageRecord(state="done")},
        original=event.original,
        **image.model_dump(),
    )
    again = work_of(record, 0)
    assert again is not None
    assert again.image == image
    keys = [ref.key for ref in image.objects().values()]
    assert lost(record, keys) == {}
    assert lost(record, keys[:-1]) == {"sanitizer": (image.pages[-1].object,)}
