from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from pydantic import JsonValue, ValidationError

from agents.stages import sanitizer
from agents.stages.sanitizer import STAGE, SanitizerSettings, Tools, probe, sanitize_image
from schemas.events.facts import ImageSanitized
from schemas.events.intake import ImageFetched
from schemas.stored.results import SanitizedImage
from schemas.values import ErrorCode, ObjectRef
from streams import topics
from streams.errors import EngineFailed, Malformed, NotReady, ObjectGone, Retryable
from streams.object_store.factory import open_files
from streams.sandbox.child_process import Limits
from streams.sandbox.errors import SandboxFailed
from streams.sandbox.pool import Sandbox
from streams.settings import FilesSettings, Settings
from streams.stage import Announcement, Reject, Resources
from streams.telemetry.health_board import Condition, HealthBoard
from tests.support.image_stages import REPORT, opened, uploaded
from tests.unit.streams.sandbox import test_pool

ONE = SanitizerSettings(concurrency=1)
WITHOUT_LANDLOCK = "tests.unit.streams.sandbox.lacking:without_landlock"


async def _rejected(tools: Tools, event: object) -> Reject:
    answer = await sanitize_image(event, tools)  # type: ignore[arg-type]
    assert isinstance(answer, Reject)
    return answer


async def test_a_photo_gives_a_master_and_its_properties(images_dir: Path, tmp_path: Path) -> None:
    """The master has its deterministic key, matches its reference, and has no metadata."""
    data = (images_dir / "exif" / "DSCN0010.jpg").read_bytes()
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, data)
        image = await sanitize_image(event, tools)
        assert isinstance(image, SanitizedImage)
        master = await files.get(image.master.key)
        again = await sanitize_image(event, tools)
    assert image == again
    assert image.master.key.endswith(f"{event.image_id}/1/master.jpg")
    assert hashlib.sha256(master).hexdigest() == image.master.sha256
    assert (image.width, image.height, image.source_format, image.frames, image.has_alpha) == (
        640, 480, "jpeg", 1, False,
    )  # fmt: skip
    assert b"GPS" not in master
    assert image.capture is None
    assert image.dominant_colour == image.palette[0].hex
    assert len(image.perceptual_hash) == 16


async def test_capture_details_are_kept_by_setting(images_dir: Path, tmp_path: Path) -> None:
    """The private result has date and camera only by setting, and the setting is part of the result's name."""
    chosen = SanitizerSettings(concurrency=1, keep_capture_details=True)
    async with opened(STAGE, tmp_path, chosen) as (files, tools):
        event = await uploaded(files, (images_dir / "exif" / "DSCN0010.jpg").read_bytes())
        image = await sanitize_image(event, tools)
        assert STAGE.once is not None
        assert STAGE.once.parameters(event, tools)["keep_capture_details"] is True
    assert isinstance(image, SanitizedImage)
    assert image.capture is not None
    assert image.capture.camera == "NIKON COOLPIX P6000"


async def test_every_hostile_image_is_rejected_with_a_sentence(images_dir: Path, tmp_path: Path) -> None:
    """Every hostile file is rejected, and none costs its child process."""
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        before = tools.sandbox.pids()
        for path in sorted((images_dir / "hostile").iterdir()):
            rejected = await _rejected(tools, await uploaded(files, path.read_bytes()))
            assert rejected.message.endswith("."), path.name
        assert tools.sandbox.pids() == before


async def test_a_too_large_file_is_rejected_unread(tmp_path: Path) -> None:
    """The reference's size is enough: the object need not exist."""
    ref = ObjectRef(bucket="darkroom", key="originals/default/aa/x", sha256="a" * 64, size=60_000_000)
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = (await uploaded(files, b"x")).model_copy(update={"original": ref})
        rejected = await _rejected(tools, event)
    assert rejected == Reject(ErrorCode.FILE_TOO_LARGE, "The file has 60.0 MB; at most 50 MB are accepted.")


async def test_a_missing_original_is_gone(tmp_path: Path) -> None:
    """An original deleted during processing ends the event."""
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, b"x")
        await files.delete(event.original.key)
        with pytest.raises(ObjectGone):
            await sanitize_image(event, tools)


async def test_an_original_that_differs_from_its_event_is_a_dead_letter(tmp_path: Path) -> None:
    """Other bytes, of the same or another size, are never processed under the event's name."""
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, b"abc")
        for other in (b"abd", b"abcdef", b""):
            await files.put(event.original.key, other, content_type="image/png")
            with pytest.raises(Malformed) as caught:
                await sanitize_image(event, tools)
            assert caught.value.code == ErrorCode.OBJECT_CHANGED


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("segfault", ErrorCode.DECODER_CRASHED),
        ("bomb", ErrorCode.DECODE_MEMORY),
        ("sleep", ErrorCode.DECODE_TIMEOUT),
    ],
)
async def test_a_crashing_decoder_rejects_the_image(what: str, code: ErrorCode, tmp_path: Path) -> None:
    """A crash, too much memory and too much time each have their code; the agent continues."""
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, what.encode())
        limits = Limits(memory_mb=256, wall_s=1.0)
        async with Sandbox(f"{__name__}:misbehave", limits=limits) as sandbox:
            assert (await _rejected(Tools(files, sandbox, tools.settings), event)).code == code


async def test_an_image_is_retried_when_its_child_is_killed(images_dir: Path, tmp_path: Path) -> None:
    """A good image whose decoder is killed in the middle becomes the same master in a new child."""
    data = (images_dir / "formats" / "cat.jpg").read_bytes()
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, data)
        expected = await sanitize_image(event, tools)
        (pid,) = tools.sandbox.pids()
        os.kill(pid, signal.SIGKILL)
        assert await sanitize_image(event, tools) == expected
    assert isinstance(expected, SanitizedImage)


def test_time_for_a_second_decode_is_required() -> None:
    """Settings under which a second child could not finish before the deadline are refused."""
    with pytest.raises(ValidationError, match="2 x decode_wall_s"):
        SanitizerSettings(deadline_s=60, decode_wall_s=30)


def test_children_at_their_memory_limit_fit_the_container() -> None:
    """With the default settings the worst images are rejected by a child's limit, not by the container's."""
    settings = SanitizerSettings()
    worker = 300 << 20  # bytes of the process itself
    largest = settings.concurrency * ((settings.decode_memory_mb << 20) + 2 * settings.max_bytes)
    limit = STAGE.deployment.memory_limit
    assert limit.endswith("Gi")
    assert worker + largest <= int(limit.removesuffix("Gi")) << 30


def misbehave(_: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
    """Decode as the image's bytes demand: an attacker-controlled decoder."""
    return test_pool.misbehave({"do": data.decode()}, b"")


def fail(_arguments: dict[str, JsonValue], _data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
    """Decode nothing."""
    raise KeyError("a codec's bug")


async def test_a_decoder_s_own_error_fails_the_image(tmp_path: Path) -> None:
    """An error the decoder does not expect fails the image with a code, and the stage's own image shows it as well."""
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        await probe(tools)
        async with Sandbox(f"{__name__}:fail") as sandbox:
            broken = replace(tools, sandbox=sandbox)
            with pytest.raises(EngineFailed, match="a codec's bug"):
                await sanitize_image(await uploaded(files, b"x"), broken)
            with pytest.raises(SandboxFailed):
                await probe(broken)


async def test_a_decompression_bomb_hits_the_childs_memory_limit(tmp_path: Path) -> None:
    """An image within every limit whose decoding exceeds a child's memory is rejected; the agent continues."""
    out = io.BytesIO()
    Image.new("RGB", (9000, 9000)).save(out, "PNG")
    tight = SanitizerSettings(concurrency=1, decode_memory_mb=300)
    async with opened(STAGE, tmp_path, tight) as (files, tools):
        assert (await _rejected(tools, await uploaded(files, out.getvalue()))).code == ErrorCode.DECODE_MEMORY
        small = io.BytesIO()
        Image.new("RGB", (9, 9)).save(small, "PNG")
        assert isinstance(await sanitize_image(await uploaded(files, small.getvalue()), tools), SanitizedImage)


@pytest.mark.parametrize(
    "name",
    [
        "formats/hopper.avif", "formats/hopper_lzw.tif", "formats/rotating-squares.gif", "formats/cat.jpg",
        "formats/rotating-squares.webp", "formats/basi3p08.png", "exif/samplefilehub.heif", "exif/hopper_bad_exif.jpg",
    ],
)  # fmt: skip
async def test_damaged_bytes_are_accepted_or_rejected(name: str, images_dir: Path, tmp_path: Path) -> None:
    """Whatever bytes are changed, the image is accepted or rejected; no internal error occurs."""
    data = (images_dir / name).read_bytes()
    chance = random.Random(name)
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        for _ in range(12):
            damaged = bytearray(data)
            for _ in range(chance.choice((1, 3, 30))):
                damaged[chance.randrange(min(len(data), chance.choice((64, 600, len(data)))))] = chance.randrange(256)
            answer = await sanitize_image(await uploaded(files, bytes(damaged)), tools)
            assert isinstance(answer, SanitizedImage | Reject)


async def test_a_closing_worker_rejects_no_image(tmp_path: Path) -> None:
    """An image whose child ends with the worker's shutdown is retried elsewhere, not rejected."""
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, b"sleep")
        async with Sandbox(f"{__name__}:misbehave", limits=Limits(memory_mb=256)) as sandbox:
            task = asyncio.create_task(sanitize_image(event, Tools(files, sandbox, tools.settings)))
            await asyncio.sleep(0.3)
        with pytest.raises(Retryable):
            await task


async def test_several_images_at_once_get_their_own_answers(images_dir: Path, tmp_path: Path) -> None:
    """With two children, answers for good and bad images do not mix."""
    paths = [images_dir / "photos" / "owl.jpg", images_dir / "hostile" / "truncated.jpg"] * 3
    async with opened(STAGE, tmp_path, SanitizerSettings(concurrency=2)) as (files, tools):
        events = [await uploaded(files, path.read_bytes()) for path in paths]
        answers = await asyncio.gather(*(sanitize_image(event, tools) for event in events))
    assert [isinstance(answer, SanitizedImage) for answer in answers] == [True, False] * 3


async def test_the_event_has_the_submissions_fields(images_dir: Path, tmp_path: Path) -> None:
    """One event goes to the analysis stages and to the indexer, with the submission's fields."""
    fields = {"bucket": "cats", "filename": "owl.jpg", "context": {"album": 7}, "submitted_at": "2026-01-02T03:04:05Z"}
    async with opened(STAGE, tmp_path, ONE) as (files, tools):
        event = await uploaded(files, (images_dir / "photos" / "owl.jpg").read_bytes(), **fields)
        image = await sanitize_image(event, tools)
    assert isinstance(image, SanitizedImage)
    assert STAGE.once is not None
    emitted = STAGE.once.announce(event, image, Announcement(REPORT, event.original)).events
    assert [topic for topic, _ in emitted] == [topics.SANITIZED, topics.FACTS]
    first, second = (fact for _, fact in emitted)
    assert first is second
    assert isinstance(first, ImageSanitized)
    assert first.model_dump(include=set(fields)) == fields
    assert (first.image, first.original, first.image_id) == (image, event.original, event.image_id)

    fetched = ImageFetched(image_id=event.image_id, original=event.original, url="https://example.org/a.jpg")
    (_, fact), _ = STAGE.once.announce(fetched, image, Announcement(REPORT, event.original)).events
    assert isinstance(fact, ImageSanitized)
    assert (fact.source_url, fact.submitted_at) == ("https://example.org/a.jpg", fetched.occurred_at)


def test_the_parent_loads_no_decoder() -> None:
    """The agent's own process imports neither Pillow nor numpy, so that it cannot decode an image."""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    program = f"import sys, {sanitizer.__name__}; print({{'PIL', 'numpy', 'pillow_heif'}} & set(sys.modules))"
    root = str(Path(__file__).parents[4])
    assert subprocess.check_output((sys.executable, "-c", program), cwd=root, text=True).strip() == "set()"


async def test_health_shows_how_the_children_are_confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that the system lacks is in the worker's health, which stays ok: images are processed."""
    monkeypatch.setattr(sanitizer, "_CHILD", WITHOUT_LANDLOCK)
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        board = HealthBoard()
        async with STAGE.open(ONE, Resources(Settings(), files, board)):
            assert board.snapshot()["sandbox"]["detail"] == "not confined by Landlock (Operation not supported)"
        assert board.condition() is Condition.OK


async def test_a_required_confinement_that_is_missing_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With DARKROOM_SANDBOX__REQUIRE the agent does not start, and the message names the part and the remedy."""
    monkeypatch.setattr(sanitizer, "_CHILD", WITHOUT_LANDLOCK)
    monkeypatch.setenv("DARKROOM_SANDBOX__REQUIRE", "true")
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        with pytest.raises(NotReady, match=r"Landlock .*DARKROOM_SANDBOX__REQUIRE=false"):
            async with STAGE.open(ONE, Resources(Settings(), files, HealthBoard())):
                pass
