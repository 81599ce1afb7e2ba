"""Image stages without Kafka: their tools on a directory store, and their input events."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from schemas.events.facts import ImageSanitized
from schemas.events.intake import ImageUploaded
from schemas.stored.results import SanitizedImage
from schemas.values import StageReport, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import original_key
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings, Settings
from streams.stage import Resources, Stage, StageSettings
from streams.telemetry.health_board import HealthBoard

REPORT = StageReport(stage="test", version="1", attempts=1, duration_ms=0)


@asynccontextmanager
async def opened(
    stage: Stage[Any, Any, Any], folder: Path, settings: StageSettings | None = None
) -> AsyncIterator[tuple[FileStore, Any]]:
    """Open a stage's tools on a store in a folder."""
    async with open_files(FilesSettings(directory=folder)) as files:
        resources = Resources(Settings(), files, HealthBoard())
        async with stage.open(settings or stage.settings(), resources) as tools:
            yield files, tools


async def uploaded(files: FileStore, data: bytes, **fields: Any) -> ImageUploaded:
    """Store an original and return its ImageUploaded event."""
    sha256 = hashlib.sha256(data).hexdigest()
    original = await files.put(original_key("default", sha256), data, content_type="application/octet-stream")
    return ImageUploaded(image_id=new_image_id(), original=original, **fields)


def sanitized(event: ImageUploaded, image: SanitizedImage) -> ImageSanitized:
    """Return the ImageSanitized event of an upload."""
    return ImageSanitized(image_id=event.image_id, original=event.original, image=image, report=REPORT)
