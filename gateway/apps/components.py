"""What an app is made of: opened, plugged in and closed by whoever composes the process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.access.dependencies import AnonymousAuthenticator, Authenticator
from gateway.limits.quotas import Quotas
from gateway.limits.rate_limits import Limits
from gateway.protocols import EventSink, Readiness, Reconciling, TextEncoder
from streams.object_store.protocol import FileStore

if TYPE_CHECKING:  # what the ingest process does not load
    from gateway.operations.statistics_cache import StatisticsCache
    from gateway.search.feature_batching import Batching
    from streams.live.log_follower import LogFeed
    from streams.read_model.protocol import ReadModel
    from streams.retries.dead_letter_listing import DeadLetterListing


@dataclass(frozen=True, kw_only=True)
class IngestComponents:
    """What takes images in."""

    files: FileStore
    events: EventSink
    readiness: Readiness
    authenticator: Authenticator = field(default_factory=AnonymousAuthenticator)
    limits: Limits = field(default_factory=Limits.none)
    quotas: Quotas = field(default_factory=Quotas)
    live: LogFeed | None = None  # None: no live progress


@dataclass(frozen=True, kw_only=True)
class QueryComponents(IngestComponents):
    """What also tells of them."""

    read_model: ReadModel
    encoder: TextEncoder | None = None  # None: no search by meaning
    features: Batching[Any] | None = None  # None: no vectors alone
    reconciling: Reconciling | None = None  # None: this process cannot
    letters: DeadLetterListing | None = None  # None: this process cannot
    numbers: StatisticsCache | None = None  # None: this process does not count
