"""The profile of a submission: which stages process the image, and their parameters, on every way in."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from schemas.events.intake import ImageUploaded
from schemas.values import DEFAULT_STAGES, Profile
from streams.object_store.factory import open_files
from streams.settings import FilesSettings
from tests.support.gateway_components import JPEG, UPLOAD, Sink, StubReadiness, client_of, refused, settings

BATCH, FETCH = "/api/v1/images/batch", "/api/v1/images/fetch"
ASKED = {"stages": ["detector", "resizer"], "parameters": {"detector": {"confidence": 0.6}}}
MEANT = Profile(stages=("sanitizer", "resizer", "detector"), parameters={"detector": {"confidence": 0.6}})


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
async def client(sink: Sink, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        app = ingest_app(settings(), IngestComponents(files=files, events=sink, readiness=StubReadiness()))
        async with client_of(app) as found:
            yield found


async def test_a_form_a_query_and_a_json_body_choose_stages_and_parameters(
    client: httpx.AsyncClient, sink: Sink
) -> None:
    """The event has the profile, each stage once and in pipeline order; the sanitizer always runs."""
    text = json.dumps(ASKED)
    answers = [
        await client.post(UPLOAD, files={"file": ("a", JPEG)}, data={"profile": text}),
        await client.post(UPLOAD, content=JPEG, headers={"Content-Type": "image/jpeg"}, params={"profile": text}),
        await client.post(FETCH, json={"url": "https://example.org/a.jpg", "profile": ASKED}),
    ]
    assert [answer.status_code for answer in answers] == [202] * 3, [answer.text for answer in answers]
    assert [event.profile for _, event in sink.sent] == [MEANT] * 3


async def test_without_a_profile_an_image_passes_the_default_stages(client: httpx.AsyncClient, sink: Sink) -> None:
    """An absent or empty profile is the default one."""
    await client.post(UPLOAD, files={"file": ("a", JPEG)})
    await client.post(UPLOAD, files={"file": ("a", JPEG)}, data={"profile": ""})
    assert [event.profile for _, event in sink.sent] == [Profile(stages=DEFAULT_STAGES)] * 2


async def test_files_of_a_batch_have_their_own_profiles(client: httpx.AsyncClient, sink: Sink) -> None:
    """`items` overrides the profile of the batch for one file."""
    own = {"b.jpg": {"profile": {"stages": ["ocr"]}}}
    answer = await client.post(
        BATCH,
        files=[("files", ("a.jpg", JPEG)), ("files", ("b.jpg", JPEG + b"b"))],
        data={"profile": json.dumps(ASKED), "items": json.dumps(own)},
    )
    assert answer.status_code == 202, answer.text
    found = {event.filename: event.profile for _, event in sink.sent if isinstance(event, ImageUploaded)}
    assert found == {"a.jpg": MEANT, "b.jpg": Profile(stages=("sanitizer", "ocr"))}


@pytest.mark.parametrize(
    "profile",
    [
        "not json",
        "[]",
        '{"stages": ["sharpness"]}',
        '{"stages": "ocr"}',
        '{"stages": ["indexer"]}',
        '{"parameters": {"unknown": {}}}',
        '{"parameters": {"ocr": []}}',
        '{"parameters": {"ocr": {"min_confidence": 1e999}}}',
        json.dumps({"parameters": {"ocr": {"languages": "x" * 5000}}}),
        '{"parameters": {"ocr": ' + '{"a":' * 1500 + "1" + "}" * 1500 + "}}",
    ],
    ids=range(10),
)
async def test_an_invalid_profile_is_refused_with_its_field(
    profile: str, client: httpx.AsyncClient, sink: Sink
) -> None:
    """Nothing is accepted, and the problem names a place in the profile."""
    answer = await client.post(UPLOAD, files={"file": ("a", JPEG)}, data={"profile": profile})
    refused(answer, 422, "invalid-field")
    assert answer.json()["errors"][0]["field"].startswith("profile")
    assert not sink.sent


async def test_an_unknown_key_of_a_profile_is_refused_with_its_field(client: httpx.AsyncClient) -> None:
    """A misspelt key is not ignored."""
    answer = await client.post(UPLOAD, files={"file": ("a", JPEG)}, data={"profile": '{"stage": ["ocr"]}'})
    refused(answer, 400, "unknown-field")
    assert answer.json()["errors"][0]["field"] == "profile.stage"


async def test_another_profile_is_another_request_for_an_idempotency_key(client: httpx.AsyncClient) -> None:
    """The profile is part of what a repeated request must equal."""
    key = {"Idempotency-Key": "one-and-the-same"}
    await client.post(UPLOAD, files={"file": ("a", JPEG)}, headers=key)
    answer = await client.post(UPLOAD, files={"file": ("a", JPEG)}, data={"profile": json.dumps(ASKED)}, headers=key)
    assert answer.status_code in {409, 422}, answer.text
