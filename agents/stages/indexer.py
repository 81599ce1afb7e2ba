"""indexer: facts come in; each is written into its image's record, and how an image ends is said once.

In: `image.facts`. Out: `image.outcomes`. Refused: nothing; facts of a generation that is over, or of an image that is
deleted or another's, are dropped as superseded. Facts may come in any order and any number of times: the record is
the same. The outcome is said by the fact that ended the image, and again only when that very fact comes again.
A deletion removes the image's objects and receipts, its original and results unless the owner has the same bytes
elsewhere, and leaves a tombstone here and one that the other agents can see.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from pydantic import Field

from agents.indexing.erase_image import Done, erase
from agents.indexing.record_annotations import annotate
from agents.indexing.record_facts import conclude, record
from schemas.events.envelope import Event
from schemas.events.facts import DeletionRequested, Fact, ImageAnnotated
from schemas.events.outcomes import ImageDeleted
from schemas.stored.results import StageResult
from schemas.values import ErrorCode, ImageState
from streams import topics
from streams.errors import Malformed
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.stage import Emit, Resources, Skip, Stage, StageSettings
from streams.telemetry import metrics

_SUPERSEDED = Skip(ErrorCode.SUPERSEDED, "the image has a newer generation, is deleted, or is not this owner's")


class IndexerSettings(StageSettings):
    """Limits of the indexer; DARKROOM_INDEXER__…"""

    concurrency: int = Field(16, ge=1, description="images worked on at once")
    buffer: int = Field(128, ge=1, description="events fetched ahead")


@dataclass(frozen=True, slots=True)
class Tools:
    """Where records are, and the objects a deletion removes."""

    read_model: ReadModel
    files: FileStore


@asynccontextmanager
async def open_tools(_settings: IndexerSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Use the read model this process already has, or open it."""
    async with AsyncExitStack() as stack:
        read_model = resources.read_model
        if read_model is None:
            read_model = await stack.enter_async_context(open_read_model(resources.settings.qdrant, resources.breakers))
        yield Tools(read_model, resources.files)


async def index(event: Event, tools: Tools) -> Emit | Skip:
    """Write what a fact says; say the outcome if it ended the image. Raises Malformed for a vector that is none."""
    if isinstance(event, DeletionRequested):
        return await _delete(event, tools)
    if isinstance(event, ImageAnnotated):
        return Emit(()) if await annotate(event, tools.read_model, Tombstones(tools.files)) else _SUPERSEDED
    if not isinstance(event, Fact):
        raise Malformed(f"{event.type} is no fact")
    known = await record(event, tools.read_model, Tombstones(tools.files))
    if known is None:
        return _SUPERSEDED
    outcome = await conclude(event, known, tools.read_model)
    return Emit(((topics.OUTCOMES, outcome),) if outcome is not None else ())


async def _delete(event: DeletionRequested, tools: Tools) -> Emit | Skip:
    known = await tools.read_model.get(event.image_id)
    if known is not None and (known.owner != event.owner or known.generation > event.generation):
        return _SUPERSEDED
    done = await erase(event, known, tools.read_model, tools.files)
    if done is None:
        return _SUPERSEDED
    if done is Done.NOW:
        metrics.IMAGES.labels(ImageState.DELETED.value).inc()
    gone = ImageDeleted(image_id=event.image_id, owner=event.owner, generation=event.generation, profile=event.profile)
    return Emit(((topics.OUTCOMES, gone),))


STAGE: Stage[Event, Tools, StageResult] = Stage(
    name="indexer",
    version="1",
    consumes=(topics.FACTS,),
    emits=(topics.OUTCOMES,),
    settings=IndexerSettings,
    open=open_tools,
    process=index,
    in_profile=False,
    reports_failures=False,
    fenced=False,  # the read model knows, and a deletion must pass
)
