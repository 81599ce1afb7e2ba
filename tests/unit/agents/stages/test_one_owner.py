"""No owner pauses a stage: hundreds of one owner's events that die, while another owner's images complete."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agents import pipeline
from schemas.events.envelope import Event
from schemas.events.facts import ImageSanitized, StageFailed
from schemas.events.intake import ImageUploaded
from schemas.stored.results import SanitizedImage
from schemas.values import ObjectRef, StageReport, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, original_key
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings, LimitSettings, ModelsSettings, Settings
from streams.stage import Resources
from streams.telemetry.health_board import HealthBoard
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.stage_kit import bench, message

pytestmark = pytest.mark.lengthy

BAD, GOOD = 120, 3  # far more dead letters than the limit of a window
Make = Callable[[FileStore, str, bytes], Awaitable[Event]]


async def _uploaded(files: FileStore, owner: str, data: bytes) -> Event:
    """Return an upload; bytes that are no image are stored under another hash, which the sanitizer finds changed."""
    sha256 = hashlib.sha256(data if data.startswith(b"\x89PNG") else b"other").hexdigest()
    stored = await files.put(original_key(owner, sha256), data, content_type="application/octet-stream")
    original = ObjectRef(bucket=stored.bucket, key=stored.key, sha256=sha256, size=len(data))
    return ImageUploaded(image_id=new_image_id(), owner=owner, original=original)


async def _sanitized(files: FileStore, owner: str, data: bytes) -> Event:
    """Return a master, which for the worst inputs is no image."""
    image_id = new_image_id()
    master = await files.put(image_key(image_id, 1, "master.png"), data, content_type="image/png")
    original = ObjectRef(bucket="darkroom", key=original_key(owner, "a" * 64), sha256="a" * 64, size=1)
    image = SanitizedImage(
        master=master, width=64, height=48, source_format="png", frames=1, perceptual_hash="0" * 16,
        dominant_colour="#000000", thumbhash="",
    )  # fmt: skip
    report = StageReport(stage="sanitizer", version="1", attempts=1, duration_ms=0)
    return ImageSanitized(image_id=image_id, owner=owner, report=report, original=original, image=image)


@pytest.mark.parametrize(
    ("name", "make", "settings"),
    [
        ("sanitizer", _uploaded, {"concurrency": 1}),
        ("resizer", _sanitized, {}),
        ("ocr", _sanitized, {"policy": "tesseract"}),
        ("detector", _sanitized, {}),
    ],
)
async def test_one_owner_s_worst_inputs_do_not_pause_a_stage(
    tmp_path: Path, models_dir: Path, models_cache: Path, name: str, make: Make, settings: dict[str, Any]
) -> None:
    """Each event of one owner becomes a dead letter and a failed image; the other owner's images all get results."""
    stage = pipeline.stage(name)
    chosen = stage.settings(**settings)
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(picture, "PNG")
    models = ModelsSettings(dir=models_dir, cache=models_cache, download=False)
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_files(FilesSettings(directory=tmp_path / "objects")))
        resources = Resources(Settings(models=models), files, HealthBoard())
        tools = await stack.enter_async_context(stage.open(chosen, resources))
        events = [await make(files, "anna", b"no image") for _ in range(BAD)]
        for place in range(GOOD):
            events.insert(place * BAD // 2, await make(files, "ben", picture.getvalue()))
        log = MemoryLog()
        topic = stage.consumes[0]
        await log.deliver([message(event, topic.name) for event in events])
        on = bench(stage, files, log, settings=chosen, tools=tools, limit=LimitSettings())
        worker = MemoryWorker(log, name, [topic.name], on.intake)
        await worker.until_idle()
        await worker.stop()
    assert on.halted == []
    assert len(log.records(f"{name}.dead")) == BAD
    records = log.records("image.facts")
    facts = [(record.header("ce_type"), json.loads(record.value or b"")["owner"]) for record in records]
    assert Counter(owner for kind, owner in facts if kind == StageFailed.type) == {"anna": BAD}
    assert Counter(owner for kind, owner in facts if kind != StageFailed.type) == {"ben": GOOD}
