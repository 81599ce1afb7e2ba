"""How often and with what each source may be asked: defaults, and rules of single hosts and providers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from schemas.events.intake import FetchPriority
from streams.settings import Group

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "range"})
_SHARES: Mapping[FetchPriority, float] = {
    FetchPriority.INTERACTIVE: 1.0,
    FetchPriority.BATCH: 0.8,
    FetchPriority.BACKGROUND: 0.5,
}
"""Share of a source's budget that a priority may use: the rest is kept for what is more urgent."""


class Robots(StrEnum):
    """Whether robots.txt is obeyed (RFC 9309)."""

    IGNORE = "ignore"
    OBEY = "obey"


class SourceRule(Group):
    """Rules of one source; what is left out is as for all sources."""

    requests: int | None = Field(None, ge=1, description="requests in a window")
    interval_s: float | None = Field(None, ge=0, description="seconds between two requests")
    concurrency: int | None = Field(None, ge=1, description="requests at once, of one worker")
    robots: Robots | None = Field(None, description="whether robots.txt is obeyed")
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="headers sent to this source only, such as Authorization"
    )
    headers_over_http: bool = Field(False, description="send the headers over unencrypted connections too")

    @field_validator("headers")
    @classmethod
    def _valid(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            if not _TOKEN.fullmatch(name) or name.lower() in _OWN_HEADERS:
                raise ValueError(f"{name!r} is not a header that may be set")
            if not value.get_secret_value().isprintable() or not value.get_secret_value().isascii():
                raise ValueError(f"the value of the header {name!r} is not printable ASCII")
        return headers


class SourceRules(Group):
    """Rules for all sources, and of single ones."""

    requests: int = Field(25, ge=1, description="requests to one source (host and port, or provider) in a window")
    window_s: float = Field(3600.0, gt=0, description="seconds of the window in which a source's requests are counted")
    interval_s: float = Field(0.0, ge=0, description="seconds between two requests to one source")
    source_concurrency: int = Field(4, ge=1, description="requests at once to one source, of one worker")
    robots: Robots = Field(Robots.IGNORE, description="`obey`: fetch only what the source's robots.txt allows")
    sources: dict[str, SourceRule] = Field(
        default_factory=dict,
        description="rules of single sources, a JSON object: host, host:port, *.domain or provider to `requests`, "
        "`interval_s`, `concurrency`, `robots`, `headers`",
    )

    def of(self, source: str) -> SourceRule:
        """Return the complete rule of a source: host, host:port or provider."""
        found = self._found(source)
        return SourceRule(
            requests=found.requests or self.requests,
            interval_s=self.interval_s if found.interval_s is None else found.interval_s,
            concurrency=found.concurrency or self.source_concurrency,
            robots=found.robots or self.robots,
            headers=found.headers,
            headers_over_http=found.headers_over_http,
        )

    def _found(self, source: str) -> SourceRule:
        host = source.rsplit(":", 1)[0] if not source.endswith("]") else source
        domains = (f"*.{host.split('.', n)[n]}" for n in range(1, host.count(".") + 1))
        for name in (source, host, *domains):
            if name in self.sources:
                return self.sources[name]
        return SourceRule()


def share_of(requests: int, priority: FetchPriority) -> int:
    """Return how many of a source's requests in a window a priority may use, at least one."""
    return max(1, math.floor(requests * _SHARES[priority]))


def source_of(url: str) -> str:
    """Return the source of a checked http(s) URL: its host, with the port unless it is the scheme's own."""
    return urlsplit(url).netloc
