"""Downloads from foreign servers, under limits; agents fetch URLs by no other client.

Every connection resolves once, checks all addresses and connects to a checked one, so that DNS rebinding has no
effect. Host, SNI and the certificate check use the name. Redirects are followed here, each checked like the first
URL.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import IO
from urllib.parse import urljoin

import certifi
import httpcore
import httpx
from pydantic import Field

from agents.core.url_guard import Address, Policy, UrlNotAllowed, check_addresses, check_url
from schemas.formats import SNIFF_BYTES, sniff
from schemas.values import ErrorCode
from streams.errors import DependencyUnavailable, Retryable
from streams.settings import Group

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]

_REDIRECTS = (301, 302, 303, 307, 308)
_RETRYABLE = (408, 425, 429)  # 4xx that are worth another try
_NOT_FOUND = (404, 410)
_UNREADABLE_LOCATION = "the source redirects to a URL that cannot be read"
_BAD_LOCATION = "Invalid URL in location header"  # httpx's, which parses it also where it follows no redirects


class SourceSettings(Group):
    """Limits of a download, and which sources are allowed."""

    max_bytes: int = Field(50_000_000, ge=1, description="bytes of the largest file accepted")
    total_timeout_s: float = Field(60.0, gt=0, description="seconds a download may take, redirects included")
    idle_timeout_s: float = Field(10.0, gt=0, description="seconds without data before a download fails")
    connect_timeout_s: float = Field(5.0, gt=0, description="seconds a connection may take, TLS handshake included")
    max_redirects: int = Field(5, ge=0, description="redirects followed, each checked like the first URL")
    max_connections: int = Field(16, ge=1, description="concurrent connections")
    retry_after_limit_s: float = Field(1800.0, gt=0, description="longest wait a source may ask for by Retry-After")
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="non-public networks that may be fetched from, as a JSON list of CIDRs (intranets)"
    )
    allowed_ports: tuple[int, ...] = Field((), description="the only ports allowed; empty: 80, 443, 1024 and up")
    ca_file: Path | None = Field(None, description="PEM certificates trusted besides the public ones (intranets)")
    user_agent: str = Field("Darkroom/1 (image fetcher)", description="User-Agent header of downloads")

    def policy(self) -> Policy:
        """Return what the guard allows."""
        return Policy(networks=self.allowed_networks, ports=frozenset(self.allowed_ports))


class Refused(Exception):
    """Final refusal: the URL is forbidden, or another try cannot succeed. The message is public."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Download:
    """A completed download."""

    sha256: str
    size: int  # bytes
    format: str  # a name of schemas.formats
    final_url: str


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Resolve with the system's resolver. Raises socket.gaierror."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(sockaddr[0])) for *_, sockaddr in found]


class GuardedNetwork(httpcore.AnyIOBackend):
    """Connects only to addresses that passed the guard. Raises UrlNotAllowed, socket.gaierror."""

    def __init__(self, policy: Policy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        check_addresses(addresses, self._policy)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await super().connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport, HTTP/1.1 with a connection pool, on a guarded network."""

    def __init__(self, settings: SourceSettings, resolve: Resolve) -> None:
        trusted = ssl.create_default_context(cafile=certifi.where())
        if settings.ca_file is not None:
            trusted.load_verify_locations(settings.ca_file)
        super().__init__(verify=trusted, trust_env=False)
        # httpx takes no network as an argument, so its pool is replaced by the same pool with one.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trusted,
            max_connections=settings.max_connections,
            keepalive_expiry=5.0,
            network_backend=GuardedNetwork(settings.policy(), resolve),
        )


class HttpSource:
    """Downloads URLs under the limits of the settings."""

    def __init__(self, settings: SourceSettings, client: httpx.AsyncClient) -> None:
        self._settings = settings
        self._policy = settings.policy()
        self._client = client

    async def download(self, url: str, spool: IO[bytes]) -> Download:
        """Write the response body into `spool`, undecoded. Raises Refused, Retryable."""
        try:
            async with asyncio.timeout(self._settings.total_timeout_s):
                return await self._follow(url, spool)
        except (UrlNotAllowed, httpx.InvalidURL) as error:
            raise Refused(ErrorCode.URL_NOT_ALLOWED, str(error)) from error
        except UnicodeError as error:  # a host or path that httpx, the resolver or TLS cannot encode
            raise Refused(ErrorCode.URL_NOT_ALLOWED, "the URL cannot be read") from error
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                raise Refused(ErrorCode.SOURCE_NOT_FOUND, "the URL's host does not exist") from error
            raise _unavailable("the source's name could not be resolved") from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _unavailable("the source took too long") from error
        except httpx.TransportError as error:
            if _is_certificate_error(error):
                raise Refused(ErrorCode.SOURCE_REFUSED, "the source's certificate is not valid") from error
            if str(error).startswith(_BAD_LOCATION):
                raise Refused(ErrorCode.URL_NOT_ALLOWED, _UNREADABLE_LOCATION) from error
            raise _unavailable(f"the connection to the source failed: {type(error).__name__}") from error
        except OSError as error:
            raise DependencyUnavailable(f"cannot write to the spool: {error.strerror or error}") from error

    async def _follow(self, url: str, spool: IO[bytes]) -> Download:
        for _ in range(self._settings.max_redirects + 1):
            target = check_url(url, self._policy)
            async with self._client.stream("GET", target.url) as response:
                if response.status_code not in _REDIRECTS:
                    self._check_answer(response)
                    return await self._spool(response, spool, target.url)
                location = response.headers.get("location")
            if not location:
                raise Refused(ErrorCode.SOURCE_REFUSED, "the source redirects without a Location header")
            url = _redirected(target.url, location)
        raise Refused(ErrorCode.TOO_MANY_REDIRECTS, f"more than {self._settings.max_redirects} redirects")

    def _check_answer(self, response: httpx.Response) -> None:
        status, headers = response.status_code, response.headers
        if status >= 500 or status in _RETRYABLE:
            after_s = retry_after(headers.get("retry-after"), datetime.now(UTC))
            limit = self._settings.retry_after_limit_s
            raise _unavailable(f"the source answered {status}", None if after_s is None else min(after_s, limit))
        if status in _NOT_FOUND:
            raise Refused(ErrorCode.SOURCE_NOT_FOUND, f"the source answered {status}: there is no such file")
        if status == 204:
            raise Refused(ErrorCode.EMPTY_FILE, "the source answered without a body")
        if status not in (200, 203):
            raise Refused(ErrorCode.SOURCE_REFUSED, f"the source answered {status}")
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            # Not requested, useless for images, and the means of a decompression bomb.
            raise Refused(ErrorCode.SOURCE_REFUSED, "the source sent an unrequested content encoding")
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._settings.max_bytes:
            raise self._too_large()

    async def _spool(self, response: httpx.Response, spool: IO[bytes], url: str) -> Download:
        digest, size, head, known = hashlib.sha256(), 0, b"", None
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > self._settings.max_bytes:
                raise self._too_large()
            if known is None:
                head += chunk[:SNIFF_BYTES]
                if len(head) >= SNIFF_BYTES:
                    known = _format_of(head)
            digest.update(chunk)
            spool.write(chunk)
        if not size:
            raise Refused(ErrorCode.EMPTY_FILE, "the source sent an empty file")
        spool.flush()
        return Download(digest.hexdigest(), size, known or _format_of(head), url)

    def _too_large(self) -> Refused:
        return Refused(ErrorCode.FILE_TOO_LARGE, f"the file has more than {self._settings.max_bytes:,} bytes")


@asynccontextmanager
async def open_source(settings: SourceSettings, resolve: Resolve = resolve) -> AsyncIterator[HttpSource]:
    """Open the connection pool; without proxy, cookies and environment, so that sources and tenants share no state."""
    async with httpx.AsyncClient(
        transport=GuardedTransport(settings, resolve),
        headers={
            "user-agent": settings.user_agent,
            "accept": "image/*,application/pdf,*/*;q=0.5",
            "accept-encoding": "identity",
        },
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        timeout=httpx.Timeout(settings.idle_timeout_s, connect=settings.connect_timeout_s, pool=None),
        trust_env=False,
        follow_redirects=False,
    ) as client:
        yield HttpSource(settings, client)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110 section 10.2.3), None if absent or unreadable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        then = parsedate_to_datetime(value)
        return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - now).total_seconds())
    except (ValueError, OverflowError, TypeError, IndexError):  # what the parser raises, by the text's fault
        return None


def _redirected(url: str, location: str) -> str:
    """Return the URL a Location header of a URL's answer names. Raises UrlNotAllowed."""
    try:
        return urljoin(url, location.strip().replace(" ", "%20"))
    except ValueError as error:
        raise UrlNotAllowed(_UNREADABLE_LOCATION) from error


def _unavailable(message: str, after_s: float | None = None) -> Retryable:
    return Retryable(message, after_s=after_s, code=ErrorCode.SOURCE_UNAVAILABLE)


def _format_of(head: bytes) -> str:
    found = sniff(head[:SNIFF_BYTES])
    if found is None:
        raise Refused(ErrorCode.NOT_AN_IMAGE, "the source sent no image of a known format")
    return found


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
