"""`darkroom submit` with more images than the limit allows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from darkroom.commands.submit import AT_ONCE, refusal_lines, send_all
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.client import AsyncDarkroom
from gateway.limits.rate_limits import open_limits
from gateway.limits.settings import RateLimitSettings
from schemas.http.submissions import ProfileRequest
from schemas.values import ImageState, split_job_id
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import BASE, JPEG, Sink, StubReadiness, settings

ALLOWED = 3


@pytest.fixture
async def read_model(tmp_path: Path) -> AsyncIterator[ReadModel]:
    async with open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as found:
        yield found


async def test_images_above_the_limit_are_one_line(read_model: ReadModel, tmp_path: Path) -> None:
    """Images above the limit are neither retried for an hour nor listed one by one; those below it complete."""
    sources = []
    for number in range(30):
        path = tmp_path / f"{number:02}.jpg"
        path.write_bytes(JPEG + bytes([number]))
        sources.append(str(path))
    paths, lines = [], []

    async def note(request: httpx.Request) -> None:
        if request.method == "POST":
            paths.append(request.url.path)

    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_limits(RateLimitSettings(uploads=f"{ALLOWED}/hour")) as limits,
    ):
        sink = Sink()
        parts = QueryComponents(
            files=files, events=sink, read_model=read_model, readiness=StubReadiness(), limits=limits
        )
        transport = httpx.ASGITransport(app=embedded_app(settings(), parts))
        async with AsyncDarkroom(BASE, transport=transport) as client:
            client._http.event_hooks["request"].append(note)

            def moved(line: str, done: int, total: int) -> None:
                lines.append(line)

            async def pipeline() -> None:
                for _, event in sink.sent:
                    image_id, _ = split_job_id(event.job_id)
                    done = {"image_id": image_id, "owner": "default", "generation": 1, "state": ImageState.COMPLETED}
                    await read_model.begin(ImageRecord.model_validate(done))

            original = client.status

            async def status(job_id: str) -> object:
                await pipeline()
                return await original(job_id)

            client.status = status  # type: ignore[assignment]
            shown, refused = await send_all(client, sources, bucket="b", patience_s=60, moved=moved)
    assert len(shown) == ALLOWED
    assert len(refused) == len(sources) - ALLOWED
    assert len(paths) <= ALLOWED + AT_ONCE
    line, hint = refusal_lines({**refused, "bad.txt": "415 unsupported-format: no image"})[1:]
    assert line.startswith("not sent: 27 images, first ")
    assert "3 uploads in 1 hour" in line
    assert "DARKROOM_LIMITS__UPLOADS" in hint


async def test_the_profile_is_sent_with_each_image(read_model: ReadModel, tmp_path: Path) -> None:
    """Every image's event has the stages of the option."""
    (tmp_path / "cat.jpg").write_bytes(JPEG)
    sink = Sink()
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as files:
        parts = QueryComponents(files=files, events=sink, read_model=read_model, readiness=StubReadiness())
        transport = httpx.ASGITransport(app=embedded_app(settings(), parts))
        async with AsyncDarkroom(BASE, transport=transport) as client:
            with pytest.raises(TimeoutError):  # nothing processes it
                await send_all(
                    client,
                    [str(tmp_path / "cat.jpg")],
                    bucket="b",
                    patience_s=0.01,
                    moved=lambda _line, _done, _total: None,
                    profile=ProfileRequest(stages=("ocr",)),
                )
    assert [event.profile.stages for _, event in sink.sent] == [("sanitizer", "ocr")]
