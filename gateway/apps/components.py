"""What an app is made of: opened, plugged in and closed by whoever composes the process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gateway.access.dependencies import Authenticator, Everybody
from gateway.limits.quotas import Quotas
from gateway.limits.rate_limits import Limits
from gateway.operations.statistics_cache import Numbers
from gateway.protocols import EventSink, Readiness, Reconciling, TextEncoder
from gateway.search.feature_batching import Batching
from streams.live.log_follower import LogFeed
from streams.object_store.protocol import FileStore
from streams.read_model.protocol import ReadModel
from streams.retries.dead_letter_listing import LetterPages


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
