"""fetcher: fetches the image of a URL, stores it as an original and emits `ImageFetched` with its reference.

In: `image.fetch-requested`. Out: `image.fetched`. Refused: URLs and addresses that the guard forbids, sources without
the file or that refuse it, files that are too large, empty, or not an image by their first bytes. An unavailable source
is retried, after its Retry-After if it sends one. Requests beyond a source's budget wait in the delay topics.

Equal bytes are stored once per owner. There is no `once`: the content of a URL may change, so answers are kept for a
time of their own (`agents.fetching.cached_source`).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog
from pydantic import Field

from agents.fetching.cached_source import CachedSource, CacheSettings
from agents.fetching.http_source import open_source
from agents.fetching.source_errors import Refused
from agents.fetching.source_gate import GateSettings, SourceGate
from agents.fetching.source_settings import SourceSettings
from schemas.events.intake import FetchRequested, ImageFetched
from schemas.stored.results import FetchedOriginal
from streams import topics
from streams.errors import DependencyUnavailable
from streams.object_store.fetch_statistics import FetchStatistics
from streams.object_store.protocol import FileStore
from streams.object_store.source_budgets import SourceBudgets
from streams.stage import Deployment, Emit, Outcome, Reject, Resources, Stage, StageSettings

log = structlog.get_logger(__name__)

_GRACE_S = 10.0  # between a request's time in the budget and its arrival at the source
_SAVE_EVERY_S = 10.0


class FetcherSettings(StageSettings, SourceSettings, CacheSettings):
    """Limits of sources, of their answers and of the stage."""

    concurrency: int = Field(64, ge=2, description="requests worked on at once, those included that wait for a moment")
    buffer: int = Field(64, ge=1, description="events fetched ahead")
    deadline_s: float = Field(120.0, gt=0, description="seconds one try may take, including waits and the store")
    hold_s: float = Field(
        25.0, ge=0, description="seconds a request may wait for its source in the worker, beyond which it is postponed"
    )

    def gate(self) -> GateSettings:
        """Return the limits of what waits: half of the requests, so that the others never wait for them."""
        held = self.concurrency // 2
        return GateSettings(self.window_s, _GRACE_S, self.hold_s, held=held, held_of_one=max(1, held // 2))


@dataclass(frozen=True, slots=True)
class Tools:
    """The sources, with what they answered, and the object store."""

    source: CachedSource
    files: FileStore


@asynccontextmanager
async def open_tools(settings: FetcherSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Open the connection pool; save the statistics now and then."""
    gate, statistics = SourceGate(SourceBudgets(resources.files), settings.gate()), FetchStatistics()
    async with open_source(settings, gate) as source:
        saving = asyncio.create_task(_save(statistics, resources.files), name="fetch-statistics")
        try:
            yield Tools(CachedSource(source, gate, resources.files, settings, statistics=statistics), resources.files)
        finally:
            saving.cancel()
            with suppress(asyncio.CancelledError):
                await saving
            with suppress(DependencyUnavailable):
                await statistics.save(resources.files)


async def _save(statistics: FetchStatistics, files: FileStore) -> None:
    while True:
        await asyncio.sleep(_SAVE_EVERY_S)
        try:
            await statistics.save(files)
        except DependencyUnavailable as error:
            log.warning("statistics of fetches not saved", error=str(error))


async def fetch_image(event: FetchRequested, tools: Tools) -> Outcome:
    """Get the original of a URL, from its source or as it was answered before."""
    try:
        original = await tools.source.original(event)
    except Refused as refused:
        return Reject(refused.code, str(refused))
    fetched = ImageFetched(
        image_id=event.image_id,
        owner=event.owner,
        generation=event.generation,
        run=event.run,
        profile=event.profile,
        **event.submission_fields(),
        original=original,
        url=event.url,
    )
    return Emit(((topics.FETCHED, fetched),))


async def probe(tools: Tools) -> None:
    """Write a spool file and to the object store; raise what fails. Whether a source answers is the input's part."""
    with tempfile.NamedTemporaryFile(prefix="darkroom-fetch-") as spool:
        spool.write(b"probe")
        spool.flush()
    await tools.files.check()


STAGE: Stage[FetchRequested, Tools, FetchedOriginal] = Stage(
    name="fetcher",
    version="1",
    consumes=(topics.FETCH_REQUESTED,),
    emits=(topics.FETCHED,),
    settings=FetcherSettings,
    open=open_tools,
    process=fetch_image,
    probe=probe,
    in_profile=False,  # an accepted fetch is always required, whatever the profile
    deployment=Deployment(cpu="100m", memory="256Mi", memory_limit="512Mi"),
)
