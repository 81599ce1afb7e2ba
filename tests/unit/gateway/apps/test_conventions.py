"""Conventions of every resource of the API: methods, a single URL, known parameters, errors without internals."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkroom.generate.openapi import StubComponent
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from schemas.values import new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import (
    JPEG,
    UPLOAD,
    Encoder,
    FaultyFiles,
    Sink,
    StubReadiness,
    client_of,
    refused,
    settings,
)
from tests.support.permissions import PERMISSIONS

INTERNAL = re.compile(
    r"Traceback|File \"|/(?:home|root|tmp|srv)/|site-packages|\.py\b|10\.0\.0\.|:9000|:6333|:9092|Error\(|Exception"
)


class Secretive:
    """A read model that fails with an error that must not be public."""

    def __getattr__(self, name: str) -> Any:
        raise DependencyUnavailable("no qdrant at 10.0.0.9:6333, see /srv/internal/settings.py")


class Mistaken:
    """A read model with a bug."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError("/srv/internal/settings.py")


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    """The real store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as files:
        yield FaultyFiles(files)


@pytest.fixture
async def client(files: FaultyFiles, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The embedded gateway on real components in folders."""
    async with open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model:
        parts = QueryComponents(
            files=files, events=Sink(), readiness=StubReadiness(), read_model=read_model, encoder=Encoder()
        )
        async with client_of(embedded_app(settings(), parts)) as client:
            yield client


async def test_head_is_get_without_its_body(client: httpx.AsyncClient) -> None:
    """HEAD responds with the status and headers of GET, without a body, for found and missing resources."""
    for path, status in (("/", 200), ("/api/v1/health", 200), (f"/api/v1/images/{new_image_id()}", 404)):
        got, head = await client.get(path), await client.head(path)
        assert (got.status_code, head.status_code, head.content) == (status, status, b"")
        kept = ("content-type", "cache-control", "x-content-type-options")
        assert [head.headers[name] for name in kept] == [got.headers[name] for name in kept]


async def test_options_and_405_name_every_method(client: httpx.AsyncClient) -> None:
    """Allow has all methods of a resource, from all its routes; a fixed path is not an id of a pattern."""
    image = f"/api/v1/images/{new_image_id()}"
    options = await client.options(image)
    assert (options.status_code, options.content) == (204, b"")
    assert {"GET", "HEAD", "OPTIONS", "PATCH", "DELETE"} == set(options.headers["allow"].split(", "))
    answer = await client.put(image)
    refused(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == options.headers["allow"]
    refused(await client.delete("/api/v1/images/upload"), 405, "method-not-allowed")


async def test_a_resource_has_one_url(client: httpx.AsyncClient) -> None:
    """A trailing slash is another resource, which does not exist: there are no redirects to a Host header."""
    answer = await client.get("/api/v1/health/", headers={"Host": "evil.example"})
    refused(answer, 404, "not-found")
    assert "location" not in answer.headers


async def test_unknown_parameters_are_named(client: httpx.AsyncClient) -> None:
    """An unknown query parameter is refused by name, with the known ones; probes may send any."""
    answer = await client.get("/api/v1/search", params={"q": "cat", "limt": "3", "Q": "x"})
    problem = refused(answer, 400, "unknown-field")
    assert [item.field for item in problem.errors] == ["Q", "limt"]
    assert "limit" in problem.detail
    assert problem.detail.startswith("Unknown parameter `Q`. Allowed: ")
    without = refused(await client.get("/api/v1/usage", params={"owner": "x"}), 400, "unknown-field")
    assert without.detail == "Unknown parameter `owner`. No parameters are allowed here."
    assert (await client.get("/health/live", params={"nocache": "1"})).status_code == 200


async def test_unknown_fields_are_named(client: httpx.AsyncClient) -> None:
    """An unknown field of a form or of JSON is refused by name."""
    form = await client.post(UPLOAD, files={"file": ("a.jpg", JPEG)}, data={"buket": "x"})
    json = await client.post("/api/v1/images/fetch", json={"url": "https://example.org/a.jpg", "buket": "x"})
    for answer in (form, json):
        assert [item.field for item in refused(answer, 400, "unknown-field").errors] == ["buket"]


async def test_numbers_in_json_are_numbers(client: httpx.AsyncClient) -> None:
    """Text is not accepted as a number, but 3.0 is an integer, as in JSON Schema."""
    asked = {"image_id": new_image_id()}
    path = "/api/v1/search/image"
    refused(await client.post(path, json={**asked, "limit": "3"}), 422, "invalid-field")
    refused(await client.post(path, json={**asked, "limit": 3.5}), 422, "invalid-field")
    refused(await client.post(path, json={**asked, "limit": 3.0}), 404, "not-found")


@pytest.mark.parametrize("read_model", [Secretive(), Mistaken()], ids=["away", "bug"])
async def test_errors_tell_nothing_internal(files: FaultyFiles, read_model: Any) -> None:
    """While every dependency fails, no error of any endpoint has an internal path, address or exception."""
    files.unavailable = isinstance(read_model, Secretive)
    stub: Any = StubComponent()
    parts = QueryComponents(
        files=files, events=Sink(unavailable=True), readiness=StubReadiness(), read_model=read_model, encoder=Encoder(),
        reconciling=stub, letters=stub, features=stub, live=None,
    )  # fmt: skip
    bodies: tuple[dict[str, Any], ...] = ({"json": {"url": "https://example.org/a.jpg"}}, {"files": {"file": JPEG}})
    refusals = 0
    async with client_of(embedded_app(settings(), parts)) as client:
        for method, path in (row for row in PERMISSIONS if row[0] != "OPTIONS"):
            for body in bodies if method in ("POST", "PUT", "PATCH") else ({},):
                filled = re.sub(r"{\w+}", new_image_id(), path)
                answer = await client.request(method, filled, headers={"X-Correlation-ID": "leak-1"}, **body)
                assert answer.headers["x-correlation-id"] == "leak-1"
                if answer.status_code >= 400 and method != "HEAD" and path != "/health/ready":
                    refusals += 1
                    assert answer.headers["content-type"] == "application/problem+json"
                    assert answer.json()["correlation_id"] == "leak-1"
                    assert not INTERNAL.search(answer.text), answer.text
    assert refusals > len(PERMISSIONS) // 2
