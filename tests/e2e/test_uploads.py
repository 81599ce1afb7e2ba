"""Resumable uploads with tuspy, and direct uploads to MinIO by a presigned form."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from tusclient.client import TusClient

from schemas.values import ImageState
from streams.object_store.keys import original_key
from tests.e2e.system import PATIENCE_S, RunningSystem

pytestmark = pytest.mark.timeout(900)  # the first test waits for the system


@pytest.fixture
def picture() -> bytes:
    """Return a new random image."""
    stream = io.BytesIO()
    Image.effect_noise((320, 240), 80).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _check(system: RunningSystem, job: dict[str, Any], picture: bytes) -> None:
    result = system.client.wait(job["job_id"], timeout_s=PATIENCE_S)
    assert result.status is ImageState.COMPLETED
    assert sorted(result.urls) == ["large", "medium", "original", "thumbnail"]
    assert result.metadata.context == {"album": "holiday"}
    digest = hashlib.sha256(picture).hexdigest()
    assert system.stored(original_key("default", digest))
    for root in ("uploads/", "pieces/", "incoming/"):
        assert system.stored(root) == []


def test_an_image_sent_in_parts_is_completed(system: RunningSystem, picture: bytes, tmp_path: Path) -> None:
    """An upload in chunks by tuspy becomes a job that completes, and no part of it is left in the store."""
    path = tmp_path / "noise.png"
    path.write_bytes(picture)
    metadata = {"filename": "noise.png", "metadata": '{"album": "holiday"}'}
    client = TusClient(f"{system.url}/api/v1/uploads")
    uploader = client.uploader(str(path), chunk_size=len(picture) // 4, metadata=metadata, retries=3, retry_delay=1)
    uploader.upload()
    _check(system, httpx.get(uploader.url, timeout=60).json()["job"], picture)


def test_an_image_uploaded_directly_to_the_store_is_completed(system: RunningSystem, picture: bytes) -> None:
    """The client posts the form to MinIO without credentials; completing the upload creates a job that completes."""
    asked = {"filename": "noise.png", "content_type": "image/png", "metadata": {"album": "holiday"}}
    form = httpx.post(f"{system.url}/api/v1/uploads/direct", json={**asked, "size": len(picture)}, timeout=60).json()
    sent = httpx.post(form["url"], data=form["fields"], files={"file": ("noise.png", picture)}, timeout=60)
    assert sent.status_code == 204, sent.text
    answer = httpx.post(form["complete_url"], timeout=60)
    assert answer.status_code == 202, answer.text
    _check(system, answer.json(), picture)
