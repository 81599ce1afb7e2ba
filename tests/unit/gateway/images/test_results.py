"""Prefer: wait. Whoever prefers to wait is answered with the result itself, if it is ready in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.apps.components import IngestComponents, QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.apps.ingest import ingest_app
from schemas.events.envelope import Event
from schemas.http.jobs import JobResult
from schemas.http.submissions import Submitted
from schemas.values import ImageState
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings
from streams.topics import Topic
from tests.support.gateway_components import JPEG, UPLOAD, Sink, StubReadiness, client_of, settings

FETCH = "/api/v1/images/fetch"


@dataclass
class Pipeline(Sink):
    """A sink behind which each image ends in that state, if in any."""

    read_model: ReadModel | None = None
    ends: ImageState | None = ImageState.COMPLETED

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        await super().send(topic, event, traceparent=traceparent, bulk=bulk)
        if self.read_model is not None and self.ends is not None:
            known = {"image_id": event.image_id, "owner": event.owner, "generation": 1, "state": self.ends}
            if self.ends is not ImageState.COMPLETED:
                known |= {"error_code": "corrupt-image", "error_message": "The image cannot be decoded."}
            await self.read_model.begin(ImageRecord.model_validate(known))


@dataclass
class House:
    """The embedded app on a real store and read model."""

    files: FileStore
    parts: QueryComponents
    pipeline: Pipeline
    client: httpx.AsyncClient


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with (
        open_files(FilesSettings(directory=tmp_path / "files")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        pipeline = Pipeline(read_model=read_model)
        parts = QueryComponents(files=files, events=pipeline, readiness=StubReadiness(), read_model=read_model)
        async with client_of(embedded_app(settings(max_wait_s=60), parts)) as client:
            yield House(files, parts, pipeline, client)


async def upload(client: httpx.AsyncClient, prefer: str | None, **more: Any) -> httpx.Response:
    headers = {} if prefer is None else {"Prefer": prefer}
    return await client.post(
        UPLOAD, files={"file": ("cat.jpg", JPEG)}, headers=headers | more.pop("headers", {}), **more
    )


async def test_a_result_that_is_ready_in_time_is_the_answer(house: House) -> None:
    """With wait the answer to an upload is 200 with what the job's result says, and the preference said to be met."""
    answer = await upload(house.client, "wait=60")
    assert answer.status_code == 200, answer.text
    result = JobResult.model_validate_json(answer.content)
    assert result.status is ImageState.COMPLETED
    assert answer.headers["preference-applied"] == "wait=60"
    shown = await house.client.get(answer.headers["content-location"])
    assert shown.json() == answer.json()
    assert (await house.client.get(answer.headers["location"])).status_code == 200


async def test_a_fetch_may_be_waited_for_too(house: House) -> None:
    """With wait the answer to a fetch is its result."""
    answer = await house.client.post(FETCH, json={"url": "https://example.org/a"}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200
    assert JobResult.model_validate_json(answer.content).status is ImageState.COMPLETED


async def test_a_result_that_comes_while_somebody_waits_is_seen(house: House) -> None:
    """The job ends after the upload was accepted, and the client that waits has its result."""
    read_model, house.pipeline.ends = house.pipeline.read_model, None
    assert read_model is not None
    waiting = asyncio.create_task(upload(house.client, "wait=60"))
    while not house.pipeline.sent:
        await asyncio.sleep(0.01)
    event = house.pipeline.sent[0][1]
    known = {"image_id": event.image_id, "owner": event.owner, "generation": 1, "state": "completed"}
    await read_model.begin(ImageRecord.model_validate(known))
    answer = await waiting
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")


async def test_a_refused_image_is_a_result_too(house: House) -> None:
    """A job that ended badly in time is answered as its result is: with its state, and why."""
    house.pipeline.ends = ImageState.REJECTED
    answer = await upload(house.client, "wait=60")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["error"]["code"]) == ("rejected", "corrupt-image")


async def test_when_time_is_over_the_answer_is_202(house: House) -> None:
    """What is not ready in time is answered 202 as ever; no longer than the setting allows is waited for."""
    house.pipeline.ends = None
    async with client_of(embedded_app(settings(max_wait_s=1), house.parts)) as client:
        for prefer in ("wait=600", "respond-async, wait=1"):
            answer = await upload(client, prefer)
            assert answer.status_code == 202
            assert answer.headers["preference-applied"] == prefer.replace("600", "1")
            assert answer.headers["retry-after"]
            Submitted.model_validate_json(answer.content)


@pytest.mark.parametrize("prefer", [None, "wait=0", "wait=-1", "wait=abc", "wait", 'wait="3"', "return=minimal", "=;,"])
async def test_whoever_does_not_prefer_to_wait_is_answered_at_once(house: House, prefer: str | None) -> None:
    """No preference, none that can be read and none that is known: 202, and nothing said to be applied."""
    answer = await upload(house.client, prefer)
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


async def test_respond_async_is_honoured(house: House) -> None:
    """With respond-async the answer is 202 at once, and says that this was preferred."""
    answer = await upload(house.client, "respond-async")
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")


async def test_the_ingest_app_alone_cannot_wait_and_says_so(tmp_path: Path) -> None:
    """Where nobody can tell what became of an image, wait is not applied, and not said to be."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        app = ingest_app(settings(), IngestComponents(files=files, events=Sink(), readiness=StubReadiness()))
        async with client_of(app) as client:
            answer = await upload(client, "wait=20")
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


async def test_a_retry_may_wait_for_what_the_first_try_did_not(house: House) -> None:
    """Sent again with its key, and now with wait, the request is answered with the result of the one image."""
    key = {"Idempotency-Key": "again"}
    first = await upload(house.client, None, headers=key)
    again = await upload(house.client, "wait=60", headers=key)
    assert again.status_code == 200
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["image_id"] == first.json()["image_id"]
    assert len(house.pipeline.sent) == 1


async def test_a_known_image_may_be_waited_for(house: House) -> None:
    """With reuse and wait, the answer is the result of the image that was there."""
    first = (await upload(house.client, None)).json()
    again = await upload(house.client, "wait=60", data={"on_duplicate": "reuse"})
    assert (again.status_code, again.json()["image_id"]) == (200, first["image_id"])
    assert JobResult.model_validate_json(again.content).status is ImageState.COMPLETED


async def test_a_read_model_that_goes_away_costs_only_the_wait(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the result cannot be asked for, the upload is 202 all the same: it was accepted."""

    async def unavailable(image_id: str) -> ImageRecord | None:
        raise DependencyUnavailable("no qdrant at 10.0.0.9:6333")

    monkeypatch.setattr(house.pipeline.read_model, "get", unavailable)
    house.pipeline.ends = None
    assert (await upload(house.client, "wait=60")).status_code == 202
    assert len(house.pipeline.sent) == 1
