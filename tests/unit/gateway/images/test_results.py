"""`Prefer: wait`: the response is the result itself, if it is ready in time."""

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
    """A sink that ends each image in `state`, if one is set."""

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
class Server:
    """The embedded app on a real store and read model."""

    files: FileStore
    components: QueryComponents
    pipeline: Pipeline
    client: httpx.AsyncClient


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with (
        open_files(FilesSettings(directory=tmp_path / "files")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        pipeline = Pipeline(read_model=read_model)
        components = QueryComponents(files=files, events=pipeline, readiness=StubReadiness(), read_model=read_model)
        async with client_of(embedded_app(settings(max_wait_s=60), components)) as client:
            yield Server(files, components, pipeline, client)


async def upload(client: httpx.AsyncClient, prefer: str | None, **more: Any) -> httpx.Response:
    headers = {} if prefer is None else {"Prefer": prefer}
    return await client.post(
        UPLOAD, files={"file": ("cat.jpg", JPEG)}, headers=headers | more.pop("headers", {}), **more
    )


async def test_a_result_that_is_ready_in_time_is_returned(server: Server) -> None:
    """With wait an upload is answered 200 with the job's result and Preference-Applied."""
    answer = await upload(server.client, "wait=60")
    assert answer.status_code == 200, answer.text
    result = JobResult.model_validate_json(answer.content)
    assert result.status is ImageState.COMPLETED
    assert answer.headers["preference-applied"] == "wait=60"
    shown = await server.client.get(answer.headers["content-location"])
    assert shown.json() == answer.json()
    assert (await server.client.get(answer.headers["location"])).status_code == 200


async def test_prefer_wait_applies_to_a_fetch(server: Server) -> None:
    """With wait a fetch is answered with its result."""
    answer = await server.client.post(FETCH, json={"url": "https://example.org/a"}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200
    assert JobResult.model_validate_json(answer.content).status is ImageState.COMPLETED


async def test_a_result_that_arrives_during_the_wait_is_returned(server: Server) -> None:
    """The job ends after the upload was accepted, and the waiting client gets its result."""
    read_model, server.pipeline.ends = server.pipeline.read_model, None
    assert read_model is not None
    waiting = asyncio.create_task(upload(server.client, "wait=60"))
    while not server.pipeline.sent:
        await asyncio.sleep(0.01)
    event = server.pipeline.sent[0][1]
    known = {"image_id": event.image_id, "owner": event.owner, "generation": 1, "state": "completed"}
    await read_model.begin(ImageRecord.model_validate(known))
    answer = await waiting
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")


async def test_a_rejected_image_is_a_result_too(server: Server) -> None:
    """A job that was rejected in time is answered with its result: state and reason."""
    server.pipeline.ends = ImageState.REJECTED
    answer = await upload(server.client, "wait=60")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["error"]["code"]) == ("rejected", "corrupt-image")


async def test_without_a_result_in_time_the_response_is_202(server: Server) -> None:
    """A result that is not ready in time is a 202; the wait is capped by the setting."""
    server.pipeline.ends = None
    async with client_of(embedded_app(settings(max_wait_s=1), server.components)) as client:
        for prefer in ("wait=600", "respond-async, wait=1"):
            answer = await upload(client, prefer)
            assert answer.status_code == 202
            assert answer.headers["preference-applied"] == prefer.replace("600", "1")
            assert answer.headers["retry-after"]
            Submitted.model_validate_json(answer.content)


@pytest.mark.parametrize("prefer", [None, "wait=0", "wait=-1", "wait=abc", "wait", 'wait="3"', "return=minimal", "=;,"])
async def test_without_prefer_wait_the_response_is_immediate(server: Server, prefer: str | None) -> None:
    """Without a preference, or with a malformed or unknown one: 202, without Preference-Applied."""
    answer = await upload(server.client, prefer)
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


async def test_respond_async_is_honoured(server: Server) -> None:
    """With respond-async the response is an immediate 202 with Preference-Applied."""
    answer = await upload(server.client, "respond-async")
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")


async def test_the_ingest_app_cannot_wait(tmp_path: Path) -> None:
    """Without a read model, wait is not applied and Preference-Applied is absent."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        app = ingest_app(settings(), IngestComponents(files=files, events=Sink(), readiness=StubReadiness()))
        async with client_of(app) as client:
            answer = await upload(client, "wait=20")
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


async def test_a_retry_may_add_prefer_wait(server: Server) -> None:
    """A retry with the same key and wait is answered with the result of the one image."""
    key = {"Idempotency-Key": "again"}
    first = await upload(server.client, None, headers=key)
    again = await upload(server.client, "wait=60", headers=key)
    assert again.status_code == 200
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json()["image_id"] == first.json()["image_id"]
    assert len(server.pipeline.sent) == 1


async def test_prefer_wait_applies_to_a_duplicate(server: Server) -> None:
    """With reuse and wait, the response is the result of the existing image."""
    first = (await upload(server.client, None)).json()
    again = await upload(server.client, "wait=60", data={"on_duplicate": "reuse"})
    assert (again.status_code, again.json()["image_id"]) == (200, first["image_id"])
    assert JobResult.model_validate_json(again.content).status is ImageState.COMPLETED


async def test_an_unavailable_read_model_costs_only_the_wait(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the result cannot be read, the upload is still 202: it is accepted."""

    async def unavailable(image_id: str) -> ImageRecord | None:
        raise DependencyUnavailable("no qdrant at 10.0.0.9:6333")

    monkeypatch.setattr(server.pipeline.read_model, "get", unavailable)
    server.pipeline.ends = None
    assert (await upload(server.client, "wait=60")).status_code == 202
    assert len(server.pipeline.sent) == 1
