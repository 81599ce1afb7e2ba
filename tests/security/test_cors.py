"""CORS: pages of other origins may call the API only if the settings list them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from gateway.access.authenticator import open_authenticator
from gateway.access.permissions import public
from gateway.access.settings import AuthSettings
from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.http.cors import SHOWN
from gateway.limits.rate_limits import open_limits
from gateway.limits.settings import RateLimitSettings
from gateway.settings import GatewaySettings
from streams.object_store.factory import open_files
from streams.settings import FilesSettings
from tests.support.gateway_components import JPEG, UPLOAD, Sink, StubReadiness, refused, settings

OURS = "https://app.example.org"
THEIRS = "https://evil.example.org"


@asynccontextmanager
async def page(folder: Path, origin: str, *allowed: str) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """Return a client like a page of an origin, of an open gateway that allows one upload."""
    own = GatewaySettings(cors_origins=allowed)
    async with (
        open_files(FilesSettings(directory=folder / "objects")) as files,
        open_limits(RateLimitSettings(uploads="1/hour")) as limits,
    ):
        authenticator = await open_authenticator(own, AuthSettings(), files)
        parts = IngestComponents(
            files=files, events=Sink(), readiness=StubReadiness(), authenticator=authenticator, limits=limits
        )
        app = ingest_app(own, parts)

        @app.get("/health/bug", dependencies=[public()])
        async def bug() -> None:
            raise ZeroDivisionError

        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        headers = {"Origin": origin}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", headers=headers) as client:
            yield client, app


def asked(method: str, *headers: str) -> dict[str, str]:
    """Return the headers of a browser's preflight."""
    return {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": ", ".join(headers)}


async def test_cors_is_off(tmp_path: Path) -> None:
    """By default no response and no preflight has CORS headers."""
    async with page(tmp_path, THEIRS) as (client, _):
        preflight = await client.options(UPLOAD, headers=asked("POST", "Authorization"))
        health = await client.get("/health/live")
        upload = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)})
    refused(upload, 403, "forbidden")
    for answer in (preflight, health, upload):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_a_listed_origin_may_call_and_read(tmp_path: Path) -> None:
    """A page of a listed origin may send the headers of clients and read the gateway's, without cookies."""
    async with page(tmp_path, OURS, OURS) as (client, _):
        sent = ("Authorization", "Idempotency-Key", "Tus-Resumable", "Upload-Offset", "Content-Type", "If-None-Match")
        for method in ("POST", "PATCH", "DELETE", "HEAD", "QUERY"):
            preflight = await client.options(UPLOAD, headers=asked(method, *sent))
            assert preflight.status_code == 200, preflight.text
            assert preflight.headers["access-control-allow-origin"] == OURS
        upload = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)})
    assert upload.status_code == 202, upload.text
    assert upload.headers["access-control-allow-origin"] == OURS
    assert "Origin" in upload.headers["vary"]
    assert "access-control-allow-credentials" not in upload.headers
    shown = set(upload.headers["access-control-expose-headers"].split(", "))
    ours = {"Location", "Retry-After", "X-Correlation-ID", "RateLimit", "RateLimit-Policy", "X-RateLimit-Remaining"}
    assert ours | {"Upload-Offset", "Tus-Resumable"} <= shown == set(SHOWN)


async def test_errors_have_cors_headers(tmp_path: Path) -> None:
    """A page of a listed origin can read errors: 429, 404 and 500."""
    async with page(tmp_path, OURS, OURS) as (client, _):
        await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)})
        answers = [
            (await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}), 429, "rate-limited"),
            (await client.get("/nowhere"), 404, "not-found"),
            (await client.get("/health/bug"), 500, "internal-error"),
        ]
    for answer, status, code in answers:
        refused(answer, status, code)
        assert answer.headers["access-control-allow-origin"] == OURS
        assert "x-correlation-id" in answer.headers


async def test_similar_origins_are_refused(tmp_path: Path) -> None:
    """Origins that begin or end like a listed one, or differ in scheme or port, are refused."""
    others = (THEIRS, OURS + ".evil.org", OURS.replace("https", "http"), OURS + ":8443", "null")
    for number, origin in enumerate(others):
        async with page(tmp_path / str(number), origin, OURS) as (client, _):
            preflight = await client.options(UPLOAD, headers=asked("POST"))
            upload = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)})
        assert preflight.status_code == 400
        refused(upload, 403, "forbidden")
        assert "access-control-allow-origin" not in {*preflight.headers, *upload.headers}


@pytest.mark.parametrize("origin", ["https://a.example/path", "app.example.org", "https://*.example.org", "", "null"])
def test_an_invalid_origin_is_refused_at_start(origin: str) -> None:
    """A setting that cannot equal the Origin of a browser is an error at startup."""
    with pytest.raises(ValidationError):
        settings(cors_origins=(origin,))
