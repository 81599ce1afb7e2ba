"""The components of an app. The composition root (darkroom.processes) opens and closes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.access.dependencies import AnonymousAuthenticator, Authenticator
from gateway.limits.quotas import Quotas
from gateway.limits.rate_limits import Limits
from gateway.protocols import EventSink, FindParameters, Readiness, Reconciling, TextEncoder
from streams.object_store.protocol import FileStore

if TYPE_CHECKING:  # what the ingest process does not load
    from gateway.operations.statistics_cache import StatisticsCache
    from gateway.search.feature_batching import Batching
    from streams.live.log_follower import LogFeed
    from streams.read_model.protocol import ReadModel
    from streams.retries.dead_letter_listing import DeadLetterListing


@dataclass(frozen=True, kw_only=True)
class IngestComponents:
    """The components of the ingest app."""

    files: FileStore
    events: EventSink
    readiness: Readiness
    authenticator: Authenticator = field(default_factory=AnonymousAuthenticator)
    limits: Limits = field(default_factory=Limits.none)
    quotas: Quotas = field(default_factory=Quotas)
    live: LogFeed | None = None  # None: no live events


@dataclass(frozen=True, kw_only=True)
class QueryComponents(IngestComponents):
    """The components of the query app, and of the embedded app."""

    read_model: ReadModel
    encoder: TextEncoder | None = None  # None: no search by meaning
    features: Batching[Any] | None = None  # None: no feature extraction
    reconciling: Reconciling | None = None  # None: not in this process
    parameters_of: FindParameters | None = None  # None: only the stages check the parameters of a rerun
    letters: DeadLetterListing | None = None  # None: this process cannot
    numbers: StatisticsCache | None = None  # None: this process does not count
