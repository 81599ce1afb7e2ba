"""Masters for tests of the analysis stages: the sanitizer's stored object and its event."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image

from schemas.events.facts import ImageSanitized
from schemas.stored.results import SanitizedImage
from schemas.values import DEFAULT_OWNER, ObjectRef, StageReport, new_image_id
from streams.object_store.keys import image_key, original_key
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings, ModelsSettings, Settings
from streams.stage import Resources
from streams.telemetry.health_board import HealthBoard

REPORT = StageReport(stage="sanitizer", version="1", attempts=1, duration_ms=0)


def event_of(master: ObjectRef, image_id: str, width: int, height: int) -> ImageSanitized:
    """Return the ImageSanitized event of a master."""
    image = SanitizedImage(
        master=master,
        width=width,
        height=height,
        source_format="png",
        frames=1,
        perceptual_hash="0" * 16,
        dominant_colour="#000000",
        thumbhash="",
    )
    original = master.model_copy(update={"key": original_key(DEFAULT_OWNER, master.sha256)})
    return ImageSanitized(image_id=image_id, report=REPORT, original=original, image=image)


async def store(files: FileStore, image: Image.Image | bytes) -> ImageSanitized:
    """Store an image, or bytes that are no image, as a master; return its event."""
    if isinstance(image, bytes):
        data, size = image, (1, 1)
    else:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG", compress_level=1)
        data, size = buffer.getvalue(), image.size
    image_id = new_image_id()
    key = image_key(image_id, 1, "master.png")
    master = await files.put(key, data, content_type="image/png", sha256=hashlib.sha256(data).hexdigest())
    return event_of(master, image_id, *size)


def missing_master() -> ImageSanitized:
    """Return an event whose master is not stored."""
    image_id = new_image_id()
    master = ObjectRef(bucket="darkroom", key=image_key(image_id, 1, "master.png"), sha256="a" * 64, size=1)
    return event_of(master, image_id, 1, 1)


def resources(files: FileStore, models: ModelsSettings, folder: Path) -> Resources:
    """Return the resources that the runtime passes to a stage."""
    settings = Settings(files=FilesSettings(directory=folder), models=models)
    return Resources(settings, files, HealthBoard())
