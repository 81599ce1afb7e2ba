"""The fetcher's tools, with a clock and a resolver of the test."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

from agents.fetching.cached_source import CachedSource
from agents.fetching.guarded_transport import Resolve, resolve
from agents.fetching.http_source import open_source
from agents.fetching.source_gate import SourceGate
from agents.stages.fetcher import FetcherSettings, Tools
from streams.object_store.protocol import FileStore
from streams.object_store.source_budgets import SourceBudgets

LOCAL = (ip_network("127.0.0.1/32"),)


@asynccontextmanager
async def open_fetching(
    files: FileStore, resolver: Resolve = resolve, *, clock: Callable[[], float] = time.time, **settings: Any
) -> AsyncIterator[Tools]:
    """Open the tools of one worker, with this machine allowed as a source."""
    limits = FetcherSettings.model_validate({"allowed_networks": LOCAL, "hold_s": 0, **settings})
    gate = SourceGate(SourceBudgets(files, clock=clock), limits.gate(), clock=clock)
    async with open_source(limits, gate, resolver) as source:
        yield Tools(CachedSource(source, gate, files, limits, clock=clock), files)
