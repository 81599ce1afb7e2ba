"""Downloads from foreign servers, under limits; agents fetch URLs by no other client.

Redirects are followed here, each checked like the first URL (`agents.core.url_guard`). Every request passes the gate
of its source (`agents.fetching.source_gate`), which counts it in the source's budget.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import IO
from urllib.parse import urljoin, urlsplit

import httpx

from agents.core.url_guard import Target, UrlNotAllowed, check_url
from agents.fetching.guarded_transport import GuardedTransport, Resolve, resolve
from agents.fetching.robots import ROBOTS_BYTES, RobotsFiles
from agents.fetching.source_errors import UNREADABLE_LOCATION, Refused, sorted_errors, unavailable
from agents.fetching.source_gate import SourceGate
from agents.fetching.source_rules import Robots, source_of
from agents.fetching.source_settings import SourceSettings
from schemas.events.intake import FetchPriority
from schemas.formats import SNIFF_BYTES, sniff
from schemas.values import ErrorCode
from streams.errors import Postponed
from streams.telemetry import metrics

_REDIRECTS = (301, 302, 303, 307, 308)
_RETRYABLE = (408, 425, 429)  # 4xx that are worth another try
_BUSY = (429, 503)
_NOT_FOUND = (404, 410)
_LONGEST_VALIDATOR = 300  # characters of an ETag that are kept
_BUSY_S = 30.0  # how long a source is left alone that is busy and does not say for how long
_SENDING = "http11.send_request_headers.started"  # httpcore's trace event right before a request is sent


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What to download, and what is known of it."""

    url: str
    priority: FetchPriority = FetchPriority.INTERACTIVE
    hops: int = 0  # redirects followed before this URL
    stored_url: str | None = None  # the URL, after redirects, of the copy that is stored
    etag: str | None = None  # of that copy, as the source sent it
    last_modified: str | None = None

    def conditions(self, url: str) -> dict[str, str]:
        """Return the headers that make the request for a URL conditional (RFC 9110 section 13.1), if it is stored."""
        if url != self.stored_url:
            return {}
        found = {"if-none-match": self.etag, "if-modified-since": self.last_modified}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Download:
    """A completed download."""

    sha256: str
    size: int  # bytes
    format: str  # a name of schemas.formats
    final_url: str
    hops: int
    etag: str | None
    last_modified: str | None


@dataclass(frozen=True, slots=True)
class NotModified:
    """The source says that the stored copy is still right."""


class RedirectPostponed(Postponed):
    """A redirect was followed, and the source it leads to must not be asked yet: continue from there."""

    def __init__(self, error: Postponed, url: str, hops: int) -> None:
        super().__init__(str(error), after_s=error.after_s, code=error.code)
        self.url = url
        self.hops = hops


class HttpSource:
    """Downloads URLs under the limits of the settings."""

    def __init__(self, settings: SourceSettings, client: httpx.AsyncClient, gate: SourceGate) -> None:
        self._settings = settings
        self._policy = settings.policy()
        self._client = client
        self._gate = gate
        self._robots = RobotsFiles(settings.user_agent)

    async def download(self, inquiry: Inquiry, spool: IO[bytes]) -> Download | NotModified:
        """Write the response body into `spool`, undecoded. Raises Refused, Retryable, Postponed."""
        with sorted_errors():
            async with asyncio.timeout(self._settings.total_timeout_s) as limit:
                return await self._follow(inquiry, spool, limit)

    async def _follow(self, inquiry: Inquiry, spool: IO[bytes], limit: asyncio.Timeout) -> Download | NotModified:
        url = inquiry.url
        for hops in range(inquiry.hops, self._settings.max_redirects + 1):
            target = check_url(url, self._policy)
            conditions = inquiry.conditions(target.url)
            try:
                await self._check_robots(target, inquiry.priority, limit)
                async with self._requested(target, inquiry.priority, conditions, limit) as response:
                    if response.status_code == 304 and conditions:
                        return NotModified()
                    if response.status_code not in _REDIRECTS:
                        await self._check_answer(response, source_of(target.url))
                        return await self._spool(response, spool, target.url, hops)
                    location = response.headers.get("location")
            except Postponed as error:
                if hops == inquiry.hops:
                    raise
                raise RedirectPostponed(error, target.url, hops) from error
            if not location:
                raise Refused(ErrorCode.SOURCE_REFUSED, "the source redirects without a Location header")
            url = _redirected(target.url, location)
        raise Refused(ErrorCode.TOO_MANY_REDIRECTS, f"more than {self._settings.max_redirects} redirects")

    @asynccontextmanager
    async def _requested(
        self, target: Target, priority: FetchPriority, headers: Mapping[str, str], limit: asyncio.Timeout
    ) -> AsyncIterator[httpx.Response]:
        """Send a request through its source's gate; the time it waits there is not the source's."""
        source, loop = source_of(target.url), asyncio.get_running_loop()
        rule = self._settings.of(source)
        left_s = (limit.when() or 0.0) - loop.time()
        limit.reschedule(None)
        async with self._gate.pass_through(source, rule, priority) as permit:
            limit.reschedule(loop.time() + left_s)
            metrics.SOURCE_REQUESTS.labels(source if source in self._settings.sources else "other").inc()

            async def trace(event: str, _info: object) -> None:
                if event == _SENDING:
                    permit.check()

            secret = rule.headers if target.url.startswith("https:") or rule.headers_over_http else {}
            own = {name: value.get_secret_value() for name, value in secret.items()}
            extensions = {"trace": trace}
            async with self._client.stream(
                "GET", target.url, headers={**own, **headers}, extensions=extensions
            ) as answer:
                yield answer

    async def _check_robots(self, target: Target, priority: FetchPriority, limit: asyncio.Timeout) -> None:
        """Raise Refused for a URL that its source's robots.txt disallows, if it is to be obeyed."""
        if self._settings.of(source_of(target.url)).robots is not Robots.OBEY:
            return

        async def read(origin: str) -> str:
            return await self._robots_file(origin, priority, limit)

        parts = urlsplit(target.url)
        if not await self._robots.allows(target.url, f"{parts.scheme}://{parts.netloc}", read):
            raise Refused(ErrorCode.SOURCE_REFUSED, "the source's robots.txt disallows the URL")

    async def _robots_file(self, origin: str, priority: FetchPriority, limit: asyncio.Timeout) -> str:
        """Return an origin's robots.txt: "" allows all, where there is none (RFC 9309 section 2.3.1)."""
        url = f"{origin}/robots.txt"
        for _ in range(self._settings.max_redirects + 1):
            target = check_url(url, self._policy)
            async with self._requested(target, priority, {}, limit) as response:
                if response.status_code not in _REDIRECTS:
                    await self._check_available(response, source_of(target.url))
                    return await _start_of(response, ROBOTS_BYTES) if response.status_code == 200 else ""
                url = _redirected(target.url, response.headers.get("location", ""))
        return ""

    async def _check_available(self, response: httpx.Response, source: str) -> None:
        """Raise Retryable if the source cannot answer now; if it is busy, leave it alone for the time it asks for."""
        status = response.status_code
        if status < 500 and status not in _RETRYABLE:
            return
        after_s = retry_after(response.headers.get("retry-after"), datetime.now(UTC))
        if after_s is not None:
            after_s = min(after_s, self._settings.retry_after_limit_s)
        if status in _BUSY and (after_s or status == 429):
            await self._gate.block(source, after_s or _BUSY_S)
        raise unavailable(f"the source answered {status}", after_s)

    async def _check_answer(self, response: httpx.Response, source: str) -> None:
        await self._check_available(response, source)
        status, headers = response.status_code, response.headers
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

    async def _spool(self, response: httpx.Response, spool: IO[bytes], url: str, hops: int) -> Download:
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
        etag, modified = (_validator(response.headers.get(name)) for name in ("etag", "last-modified"))
        return Download(digest.hexdigest(), size, known or _format_of(head), url, hops, etag, modified)

    def _too_large(self) -> Refused:
        return Refused(ErrorCode.FILE_TOO_LARGE, f"the file has more than {self._settings.max_bytes:,} bytes")


@asynccontextmanager
async def open_source(
    settings: SourceSettings, gate: SourceGate, resolve: Resolve = resolve
) -> AsyncIterator[HttpSource]:
    """Open the connection pool; without proxy, cookies and environment, so that sources and tenants share no state."""
    transport = GuardedTransport(
        settings.policy(), resolve, ca_file=settings.ca_file, max_connections=settings.max_connections
    )
    async with httpx.AsyncClient(
        transport=transport,
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
        yield HttpSource(settings, client, gate)


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


async def _start_of(response: httpx.Response, limit: int) -> str:
    data = b""
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) >= limit:
            break
    return data[:limit].decode("utf-8", "replace")


def _validator(value: str | None) -> str | None:
    """Return an ETag or Last-Modified as it was sent, None unless it can be sent back."""
    return value if value is not None and len(value) <= _LONGEST_VALIDATOR and value.isprintable() else None


def _redirected(url: str, location: str) -> str:
    """Return the URL a Location header of a URL's answer names. Raises UrlNotAllowed."""
    try:
        return urljoin(url, location.strip().replace(" ", "%20"))
    except ValueError as error:
        raise UrlNotAllowed(UNREADABLE_LOCATION) from error


def _format_of(head: bytes) -> str:
    found = sniff(head[:SNIFF_BYTES])
    if found is None:
        raise Refused(ErrorCode.NOT_AN_IMAGE, "the source sent no image of a known format")
    return found
