"""What an app is made of: opened, plugged in and closed by whoever composes the process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gateway.batching import Batching
from gateway.guard import Authenticator, Everybody
from gateway.limits import Limits
from gateway.numbers import Numbers
from gateway.ports import EventSink, Readiness, Reconciling, TextEncoder
from gateway.quotas import Quotas
from streams.feed_log import LogFeed
from streams.files import FileStore
from streams.letter_pages import LetterPages
from streams.vectors import ReadModel


@dataclass(frozen=True, kw_only=True)
class IngestParts:
    """What takes images in."""

    files: FileStore
    events: EventSink
    readiness: Readiness
    authenticator: Authenticator = field(default_factory=Everybody)
    limits: Limits = field(default_factory=Limits.none)
    quotas: Quotas = field(default_factory=Quotas)
    live: LogFeed | None = None  # None: no live progress


@dataclass(frozen=True, kw_only=True)
class QueryParts(IngestParts):
    """What also tells of them."""

    vectors: ReadModel
    encoder: TextEncoder | None = None  # None: no search by meaning
    features: Batching[Any] | None = None  # None: no vectors alone
    reconciling: Reconciling | None = None  # None: this process cannot
    letters: LetterPages | None = None  # None: this process cannot
    numbers: Numbers | None = None  # None: this process does not count
