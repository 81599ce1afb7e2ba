"""The HTTP server: proxy headers count only from configured proxies."""

from __future__ import annotations

import httpx
import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from streams.process.bounded_http import ServerSettings
from streams.process.http_server import serving

FORWARDED = {
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "for=192.0.2.8;proto=https;host=evil.example",
}


async def seen(*proxies: str) -> tuple[str, str]:
    """Return the client and the URL that an app sees of a request with proxy headers from 127.0.0.1."""

    async def show(request: Request) -> JSONResponse:
        return JSONResponse([request.client.host if request.client else "", str(request.url)])

    settings = ServerSettings.model_validate({"trusted_proxies": proxies})
    async with (
        serving(Starlette(routes=[Route("/", show)]), "127.0.0.1", 0, settings) as port,
        httpx.AsyncClient() as client,
    ):
        answer = await client.get(f"http://127.0.0.1:{port}/", headers={**FORWARDED, "Host": "here.example"})
    host, url = answer.json()
    return host, url


@pytest.mark.parametrize("proxies", [(), ("192.0.2.7",), ("10.0.0.0/8", "::1")])
async def test_proxy_headers_of_other_clients_are_ignored(
    proxies: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a setting, no client's proxy headers are read, not those of this machine either."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    assert await seen(*proxies) == ("127.0.0.1", "http://here.example/")


@pytest.mark.parametrize("proxy", ["127.0.0.1", "127.0.0.0/8"])
async def test_proxy_headers_of_configured_proxies_are_read(proxy: str) -> None:
    """A configured proxy gives the client's address and the scheme; the host is that of the request."""
    assert await seen("10.0.0.1", proxy) == ("192.0.2.7", "https://here.example/")


@pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.1/8", ""])
def test_a_proxy_is_an_address_or_a_network(proxy: str) -> None:
    """Names, wildcards and networks with host bits are refused."""
    with pytest.raises(ValidationError):
        ServerSettings.model_validate({"trusted_proxies": [proxy]})
