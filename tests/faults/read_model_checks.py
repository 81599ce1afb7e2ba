"""What a read model must have after its process was killed: every acknowledged fact, once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence

from qdrant_client import models

from schemas.values import ImageState, StageState
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.qdrant.conditions import has_id
from streams.read_model.qdrant.documents import COLLECTION_POINT, OTHER_WORDS, WORDS, Derivation, to_record
from streams.read_model.qdrant.edge_points import EdgePoints
from streams.read_model.records import DIMENSIONS
from streams.read_model.words import Analyzer
from streams.settings import QdrantSettings
from tests.faults.read_model_writer import facts_of


async def opened(settings: QdrantSettings, work: Callable[[ReadModel], Awaitable[None]]) -> None:
    """Open a read model and run checks on it."""
    async with open_read_model(settings) as model:
        await work(model)


async def check_facts(
    model: ReadModel, images: Sequence[str], done: Collection[str] | None = None, *, owner: str = "anna"
) -> None:
    """Assert that the read model has the facts `done` of `facts_of` these images, all if None, and each once."""
    for image_id in images:
        facts = facts_of(image_id, owner)
        must = [fact for fact in facts if done is None or fact.id in done]
        known, history = await model.get(image_id), await model.history(image_id)
        entries = Counter(entry.event_id for entry in history.values())
        assert max(entries.values(), default=1) == 1, f"{image_id}: twice in the history: {entries}"
        assert entries.keys() >= {fact.id for fact in must}, f"{image_id}: missing in the history"
        if not must:
            continue
        assert known is not None
        assert all(known.stages[fact.report.stage].state is StageState.DONE for fact in must)
        if len(must) == len(facts):
            assert known.state is ImageState.COMPLETED
            assert await model.vector_of(image_id) is not None
            hits = await model.search_words(owner, image_id.replace("-", ""), limit=5)
            assert [hit.record.image_id for hit in hits] == [image_id]
    ids: list[str] = []
    while page := await model.scan(after=ids[-1] if ids else None, limit=500):
        ids += [record.image_id for record in page]
    assert len(set(ids)) == len(ids) == sum((await model.count(owner)).values())
    near = await model.search_vector(owner, [1.0] + [0.0] * (DIMENSIONS - 1), limit=10)
    assert len({hit.record.image_id for hit in near}) == len(near)


def stale_images(settings: QdrantSettings) -> dict[str, dict[str, str]]:
    """Return the images whose words are not those of the settings' language, and these words by key."""
    derivation, points = Derivation(Analyzer(settings.stemming)), EdgePoints(settings.path / "edge" / "images")
    points.open({}, [])
    try:
        images = models.Filter(must_not=[has_id(COLLECTION_POINT)])
        found, _ = points.scroll(images, limit=1_000_000, payload=True)
    finally:
        points.close()
    stale: dict[str, dict[str, str]] = {}
    for point in found:
        record = to_record(point.payload).model_dump(mode="json")
        due = derivation.keys(record, derivation.words(record), {})
        stored = {key: point.payload.get(key) for key in (*WORDS.values(), OTHER_WORDS)}
        if wrong := {key: str(form) for key, form in stored.items() if form != due[key]}:
            stale[point.id] = wrong
    return stale
