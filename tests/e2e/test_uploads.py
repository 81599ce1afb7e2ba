"""Other ways in, by clients of others: in parts by tuspy, and by a signed form straight to MinIO."""

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
from tests.e2e.whole import PATIENCE_S, Whole

pytestmark = pytest.mark.timeout(900)  # the first test waits for the system


@pytest.fixture
def picture() -> bytes:
    """Return an image nobody has seen."""
    stream = io.BytesIO()
    Image.effect_noise((320, 240), 80).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _check(whole: Whole, job: dict[str, Any], picture: bytes) -> None:
    result = whole.client.wait(job["job_id"], timeout_s=PATIENCE_S)
    assert result.status is ImageState.COMPLETED
    assert sorted(result.urls) == ["large", "medium", "original", "thumbnail"]
    assert result.metadata.context == {"album": "holiday"}
    digest = hashlib.sha256(picture).hexdigest()
    assert whole.stored(original_key("default", digest))
    for root in ("uploads/", "pieces/", "incoming/"):
        assert whole.stored(root) == []


def test_an_image_sent_in_parts_is_completed(whole: Whole, picture: bytes, tmp_path: Path) -> None:
    """tuspy sends it in chunks; what its upload names is a job like any other, and nothing is left of the parts."""
    path = tmp_path / "noise.png"
    path.write_bytes(picture)
    said = {"filename": "noise.png", "metadata": '{"album": "holiday"}'}
    client = TusClient(f"{whole.url}/api/v1/uploads")
    uploader = client.uploader(str(path), chunk_size=len(picture) // 4, metadata=said, retries=3, retry_delay=1)
    uploader.upload()
    _check(whole, httpx.get(uploader.url, timeout=60).json()["job"], picture)


def test_an_image_sent_straight_to_the_store_is_completed(whole: Whole, picture: bytes) -> None:
    """The form goes to MinIO with no credentials of the client's; completing it makes a job like any other."""
    asked = {"filename": "noise.png", "content_type": "image/png", "metadata": {"album": "holiday"}}
    form = httpx.post(f"{whole.url}/api/v1/uploads/direct", json={**asked, "size": len(picture)}, timeout=60).json()
    sent = httpx.post(form["url"], data=form["fields"], files={"file": ("noise.png", picture)}, timeout=60)
    assert sent.status_code == 204, sent.text
    answer = httpx.post(form["complete_url"], timeout=60)
    assert answer.status_code == 202, answer.text
    _check(whole, answer.json(), picture)
