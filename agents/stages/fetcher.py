"""fetcher: downloads the image of a URL, stores it as an original and emits `ImageFetched` with its reference.

In: `image.fetch-requested`. Out: `image.fetched`. Refused: URLs and addresses that the guard forbids, sources without
the file or that refuse it, files that are too large, empty, or not an image by their first bytes. An unavailable source
is retried, after its Retry-After if it sends one.

Equal bytes are stored once per owner. There is no `once`: the content of a URL may change.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from agents.fetching.http_source import HttpSource, Refused, SourceSettings, open_source
from schemas.events.intake import FetchRequested, ImageFetched
from schemas.formats import MEDIA_TYPES
from schemas.stored.results import FetchedOriginal
from streams import topics
from streams.object_store.keys import original_key
from streams.object_store.original_references import add_reference
from streams.object_store.protocol import FileStore
from streams.stage import Deployment, Emit, Outcome, Reject, Resources, Stage, StageSettings


class FetcherSettings(StageSettings, SourceSettings):
    """Limits of a source and of the stage."""

    concurrency: int = Field(8, ge=1, description="downloads at once")
    deadline_s: float = Field(120.0, gt=0, description="seconds one try may take, including the store")


@dataclass(frozen=True, slots=True)
class Tools:
    """The download client and the object store."""

    source: HttpSource
    files: FileStore


@asynccontextmanager
async def open_tools(settings: FetcherSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Open the connection pool."""
    async with open_source(settings) as source:
        yield Tools(source, resources.files)


async def fetch_image(event: FetchRequested, tools: Tools) -> Outcome:
    """Download to a spool file while hashing, then store it under its hash."""
    with tempfile.NamedTemporaryFile(prefix="darkroom-fetch-") as spool:
        try:
            found = await tools.source.download(event.url, spool.file)
        except Refused as refused:
            return Reject(refused.code, str(refused))
        await add_reference(tools.files, event.owner, found.sha256, event.image_id)
        original = await tools.files.put(
            original_key(event.owner, found.sha256),
            Path(spool.name),
            content_type=MEDIA_TYPES[found.format],
            sha256=found.sha256,
        )
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
