from __future__ import annotations

import asyncio
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents.stages import resizer as agent
from agents.stages import sanitizer
from agents.stages.resizer import STAGE, ResizerSettings, probe, resize_image
from agents.stages.sanitizer import SanitizerSettings
from schemas.events.facts import ImageResized, ImageSanitized
from schemas.stored.results import SanitizedImage
from schemas.values import ErrorCode, ObjectRef, Profile
from streams import topics
from streams.concurrency.weighted_semaphore import PixelBudget
from streams.errors import EngineFailed, Malformed, ObjectGone
from streams.object_store.protocol import FileStore
from streams.stage import Announcement
from tests.support.image_stages import REPORT, opened, sanitized, uploaded


async def _arrived(files: FileStore, tmp_path: Path, data: bytes) -> ImageSanitized:
    async with opened(sanitizer.STAGE, tmp_path, SanitizerSettings(concurrency=1)) as (_, tools):
        event = await uploaded(files, data)
        image = await sanitizer.sanitize_image(event, tools)
    assert isinstance(image, SanitizedImage)
    return sanitized(event, image)


async def test_four_renditions_are_stored_beside_the_master(images_dir: Path, tmp_path: Path) -> None:
    """Each rendition has its own key, its true size and the photo's ratio; a repeat gives the same."""
    async with opened(STAGE, tmp_path) as (files, tools):
        event = await _arrived(files, tmp_path, (images_dir / "exif" / "Landscape_6.jpg").read_bytes())
        resized = await resize_image(event, tools)
        bodies = {made.name: await files.get(made.object.key) for made in resized.renditions}
        assert await resize_image(event, tools) == resized
    assert [(made.name, made.width, made.height) for made in resized.renditions] == [
        ("thumbnail", 150, 100),
        ("medium", 600, 400),
        ("large", 1200, 800),
        ("original", 1800, 1200),
    ]
    for made in resized.renditions:
        body = bodies[made.name]
        with Image.open(io.BytesIO(body)) as image:
            assert (image.format, image.size) == ("WEBP", (made.width, made.height))
            assert not image.getexif()
        assert made.object.key.endswith(f"{event.image_id}/1/{made.name}.webp")
        assert (made.object.sha256, made.object.size) == (hashlib.sha256(body).hexdigest(), len(body))
        assert (made.aspect_ratio, made.format, made.object.content_type) == (1.5, "webp", "image/webp")


async def test_a_profile_chooses_its_renditions(images_dir: Path, tmp_path: Path) -> None:
    """An image has the sizes its profile asks for, and its result is not that of the configured sizes."""
    assert STAGE.once is not None
    async with opened(STAGE, tmp_path) as (files, tools):
        plain = await _arrived(files, tmp_path, (images_dir / "exif" / "Landscape_6.jpg").read_bytes())
        profile = Profile(parameters={"resizer": {"sides": {"tiny": 30, "large": 90}}})
        event = plain.model_copy(update={"profile": profile})
        resized = await resize_image(event, tools)
        assert STAGE.once.parameters(event, tools) != STAGE.once.parameters(plain, tools)
    assert [(made.name, made.width, made.height) for made in resized.renditions] == [
        ("tiny", 30, 20),
        ("large", 90, 60),
    ]


async def test_alpha_is_kept(images_dir: Path, tmp_path: Path) -> None:
    """A transparent image has transparent renditions."""
    async with opened(STAGE, tmp_path) as (files, tools):
        event = await _arrived(files, tmp_path, (images_dir / "formats" / "5_webp_a.webp").read_bytes())
        thumbnail, *_ = (await resize_image(event, tools)).renditions
        image = Image.open(io.BytesIO(await files.get(thumbnail.object.key)))
    assert image.mode == "RGBA"
    seen = np.asarray(image)[..., 3]
    assert seen.min() == 0
    assert 160 <= seen.max() <= 190  # the source is nowhere more opaque than 174; Lanczos overshoots a little


async def test_a_missing_and_a_changed_master_differ(images_dir: Path, tmp_path: Path) -> None:
    """A deleted master ends the event; one that differs from the event is a dead letter."""
    async with opened(STAGE, tmp_path) as (files, tools):
        event = await _arrived(files, tmp_path, (images_dir / "photos" / "owl.jpg").read_bytes())
        await files.put(event.image.master.key, b"other", content_type="image/jpeg")
        with pytest.raises(Malformed) as caught:
            await resize_image(event, tools)
        assert caught.value.code == ErrorCode.OBJECT_CHANGED
        await files.delete(event.image.master.key)
        with pytest.raises(ObjectGone):
            await resize_image(event, tools)


async def test_a_codec_s_error_fails_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Pillow raises on a master fails that image with a code; the stage's own image passes while Pillow works."""

    def broken(*_arguments: object) -> bytes:
        raise RuntimeError("could not encode")

    out = io.BytesIO()
    Image.new("RGB", (30, 20), "teal").save(out, "PNG")
    async with opened(STAGE, tmp_path) as (files, tools):
        event = await _arrived(files, tmp_path, out.getvalue())
        await probe(tools)
        monkeypatch.setattr(agent, "render", broken)
        with pytest.raises(EngineFailed, match="could not encode"):
            await resize_image(event, tools)
        with pytest.raises(RuntimeError):
            await probe(tools)


async def test_many_images_at_once_end_within_a_small_budget(images_dir: Path, tmp_path: Path) -> None:
    """More work than threads and pixels allow waits and completes."""
    settings = ResizerSettings(threads=1, pixels_at_once=1000)
    async with opened(STAGE, tmp_path, settings) as (files, tools):
        event = await _arrived(files, tmp_path, (images_dir / "photos" / "owl.jpg").read_bytes())
        answers = await asyncio.gather(*(resize_image(event, tools) for _ in range(6)))
    assert all(answer == answers[0] for answer in answers)


async def test_the_fact_names_the_renditions(tmp_path: Path) -> None:
    """A fact has the stored renditions and the runtime's report; the sides are part of the result's name."""
    out = io.BytesIO()
    Image.new("RGB", (30, 20), "teal").save(out, "PNG")
    async with opened(STAGE, tmp_path, ResizerSettings(sides={"tiny": 8})) as (files, tools):
        event = await _arrived(files, tmp_path, out.getvalue())
        resized = await resize_image(event, tools)
        assert STAGE.once is not None
        assert STAGE.once.parameters(event, tools)["sides"] == {"tiny": 8}
    result = ObjectRef(bucket="darkroom", key="results/x", sha256="a" * 64, size=1)
    ((topic, fact),) = STAGE.once.announce(event, resized, Announcement(REPORT, result)).events
    assert topic is topics.FACTS
    assert isinstance(fact, ImageResized)
    assert (fact.renditions, fact.report, fact.image_id) == (resized.renditions, REPORT, event.image_id)


async def test_a_budget_is_never_exceeded_and_serves_every_waiter() -> None:
    """Used shares never exceed the budget, an oversized one runs on its own, and a cancelled wait takes no share."""
    budget, held, most = PixelBudget(100), 0, 0

    async def work(share: int) -> None:
        nonlocal held, most
        async with budget.reserve(share):
            held += min(share, 100)
            most = max(most, held)
            await asyncio.sleep(0)
            held -= min(share, 100)

    waiting = [asyncio.create_task(work(share)) for share in (60, 60, 30, 500, 10, 100, 1, 99) * 5]
    await asyncio.sleep(0)
    waiting[1].cancel()
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(answer, asyncio.CancelledError) for answer in done) == 1
    assert sum(answer is None for answer in done) == len(waiting) - 1
    assert most <= 100
