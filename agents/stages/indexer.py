"""indexer: writes each fact into its image's record, and emits each image's outcome once.

In: `image.facts`. Out: `image.outcomes`. Rejects nothing; facts of a superseded generation, or of an image that is
deleted or another owner's, are dropped as superseded. Facts may arrive in any order and any number of times: the
record is the same. The fact that ended the image emits the outcome, and emits it again only if it is redelivered.
A deletion removes the image's objects and receipts, its original and results unless the owner has the same bytes
elsewhere, and leaves a tombstone in the read model and one in the object store, which the other agents check.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from pydantic import Field

from agents.indexing.erase_image import Done, erase
from agents.indexing.record_annotations import annotate
from agents.indexing.record_facts import conclude, record
from agents.indexing.record_retries import note_retry
from schemas.events.envelope import Event
from schemas.events.facts import DeletionRequested, Fact, ImageAnnotated, StageRetrying
from schemas.events.outcomes import ImageDeleted
from schemas.stored.results import StageResult
from schemas.values import ErrorCode, ImageState
from streams import topics
from streams.errors import Malformed
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.stage import Deployment, Emit, FindStage, Resources, Skip, Stage, StageSettings, no_stages
from streams.telemetry import metrics

_SUPERSEDED = Skip(ErrorCode.SUPERSEDED, "the image has a newer generation, is deleted, or is not this owner's")


class IndexerSettings(StageSettings):
    """Limits of the indexer; DARKROOM_INDEXER__…"""

    concurrency: int = Field(16, ge=1, description="images worked on at once")
    buffer: int = Field(128, ge=1, description="events fetched ahead")


@dataclass(frozen=True, slots=True)
class Tools:
    """The records, the objects a deletion removes, and the stage table."""

    read_model: ReadModel
    files: FileStore
    find_stage: FindStage = no_stages


@asynccontextmanager
async def open_tools(_settings: IndexerSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Use the read model this process has open, or open it."""
    async with AsyncExitStack() as stack:
        read_model = resources.read_model
        if read_model is None:
            read_model = await stack.enter_async_context(open_read_model(resources.settings.qdrant, resources.breakers))
        yield Tools(read_model, resources.files, resources.find_stage)


async def index(event: Event, tools: Tools) -> Emit | Skip:
    """Write a fact; emit the outcome if it ended the image. Raises Malformed."""
    if isinstance(event, DeletionRequested):
        return await _delete(event, tools)
    if isinstance(event, ImageAnnotated):
        return Emit(()) if await annotate(event, tools.read_model, Tombstones(tools.files)) else _SUPERSEDED
    if isinstance(event, StageRetrying):
        return Emit(()) if await note_retry(event, tools.read_model, Tombstones(tools.files)) else _SUPERSEDED
    if not isinstance(event, Fact):
        raise Malformed(f"{event.type} is no fact")
    known = await record(event, tools.read_model, Tombstones(tools.files), tools.find_stage)
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


async def probe(tools: Tools) -> None:
    """Ask the read model and write to the object store; raise what fails."""
    await tools.read_model.check()
    await tools.files.check()


STAGE: Stage[Event, Tools, StageResult] = Stage(
    name="indexer",
    version="1",
    consumes=(topics.FACTS,),
    emits=(topics.OUTCOMES,),
    settings=IndexerSettings,
    open=open_tools,
    process=index,
    probe=probe,
    in_profile=False,
    reports_failures=False,
    deployment=Deployment(cpu="200m", memory="256Mi", memory_limit="512Mi", lag_per_replica=1000, read_model=True),
    checks_deletion=False,  # the read model does, and a deletion must pass
)
