"""The engine in process and a server's calls agree: the same random writes give the same answers.

One side runs on the engine, the other by the server's calls on qdrant-client's own model of a server; with
DARKROOM_TEST_QDRANT_URL set, that server is compared as well.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from schemas.values import ImageState, StageState
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.qdrant import edge_translation
from streams.read_model.qdrant.conditions import equals
from streams.read_model.qdrant.documents import Derivation
from streams.read_model.qdrant.model import QdrantReadModel
from streams.read_model.records import Filters, Hit, ImageRecord, StageRecord
from streams.settings import QdrantSettings
from tests.contracts.conftest import SERVER
from tests.support.read_models import in_memory, merge, stub, vector
from tests.support.reused_engine import reused_points

IMAGES = [str(uuid.UUID(int=(1_700_000_000_000 + n // 2) << 80 | 0x7 << 76 | 0b10 << 62 | n)) for n in range(6)]
OWNERS = ("anna", "bert")
WORDS = ("red", "Red car", "café", "cafe", "people", "zebra red", "会议", "a", "", None)
TAGS = ("red", "blue", "Big Dog")
LABELS = ("car", "person", "traffic light")

names = st.sampled_from(IMAGES)
owners = st.sampled_from(OWNERS)
generations = st.integers(1, 3)
patches = st.fixed_dictionaries(
    {},
    optional={
        "text": st.sampled_from(WORDS),
        "filename": st.sampled_from(("red.jpg", "Café.png", None)),
        "tags": st.lists(st.sampled_from(TAGS), unique=True),
        "labels": st.lists(st.sampled_from(LABELS), unique=True),
        "category": st.sampled_from(("cars", "red", None)),
        "context": st.sampled_from(({}, {"a": "red"}, {"a": [{"b": "car"}, 7]})),
        "bucket": st.sampled_from(("default", "trip")),
        "state": st.sampled_from([state.value for state in ImageState]),
        "submitted_at": st.sampled_from(("2026-01-01T00:00:00.000Z", "2026-02-01T10:00:00.000Z", None)),
        "width": st.integers(1, 9),
    },
)
writes = st.one_of(
    st.tuples(st.just("begin"), names, owners, generations, st.sampled_from(WORDS[:3])),
    st.tuples(st.just("merge"), names, generations, patches, st.one_of(st.none(), st.integers(0, 5))),
    st.tuples(st.just("stages"), names, generations, st.sampled_from(("ocr", "detector"))),
    st.tuples(st.just("tombstone"), names, owners, generations),
    st.tuples(st.just("purge"), names, generations),
)
wanted = st.builds(
    Filters,
    state=st.one_of(st.none(), st.sampled_from(list(ImageState))),
    bucket=st.sampled_from((None, "default", "trip")),
    labels=st.sampled_from(((), ("car",), ("PEOPLE",), ("person", "traffic light"))),
    tags=st.sampled_from(((), ("red",), ("red", "blue"))),
    category=st.sampled_from((None, "cars")),
    since=st.sampled_from((None, datetime(2026, 1, 15, tzinfo=UTC))),
    until=st.sampled_from((None, datetime(2026, 2, 1, 10, tzinfo=UTC))),
    text=st.sampled_from((None, "red", "CAR red", '"red car"')),
)
queries = st.sampled_from(
    ("red", "red car", '"red car"', "cafe", "people", "traffic lights", "会议", "7", "zebra", "a b")
)
reads = st.one_of(
    st.tuples(
        st.just("page"), st.one_of(st.none(), owners), wanted, st.integers(1, 4), st.one_of(st.none(), names),
        st.booleans(),
    ),
    st.tuples(st.just("words"), owners, queries, st.integers(1, 6)),
    st.tuples(st.just("near"), owners, st.integers(0, 5), st.sampled_from((None, 0.5))),
    st.tuples(st.just("scan"), st.one_of(st.none(), st.sampled_from(list(ImageState))), st.one_of(st.none(), names)),
    st.tuples(st.just("count"), st.one_of(st.none(), owners)),
    st.tuples(st.just("find"), owners, st.lists(names, max_size=4)),
)  # fmt: skip


async def write(model: ReadModel, step: tuple[Any, ...]) -> None:
    """Apply a random write."""
    match step:
        case "begin", name, owner, generation, text:
            await model.begin(stub(name, owner, generation, filename=text))
        case "merge", name, generation, patch, seed:
            near = None if seed is None else vector(seed)
            await merge(model, name, generation, patch, vector=near)
        case "stages", name, generation, stage:
            done = {stage: StageRecord(state=StageState.DONE)}
            await merge(model, name, generation, {}, stages=done, analysis={stage: {"score": generation}})
        case "tombstone", name, owner, generation:
            await model.write_tombstone(name, owner, generation)
        case "purge", name, generation:
            await model.purge(name, generation)


async def read(model: ReadModel, step: tuple[Any, ...]) -> object:
    """Return a random read's answer, without times that differ between two models."""
    match step:
        case "page", owner, filters, limit, beyond, oldest_first:
            page = await model.page(owner, filters, limit=limit, beyond=beyond, oldest_first=oldest_first)
            return [untimed(record) for record in page]
        case "words", owner, query, limit:
            return [untimed_hit(hit) for hit in await model.search_words(owner, query, limit=limit)]
        case "near", owner, seed, min_score:
            near = await model.search_vector(owner, vector(seed), limit=9, min_score=min_score)
            return sorted((round(hit.score, 4) + 0.0, hit.record.image_id) for hit in near)
        case "scan", state, after:
            return [untimed(record) for record in await model.scan(state=state, after=after, limit=4)]
        case "count", owner:
            return await model.count(owner)
        case "find", owner, ids:
            return [untimed(record) for record in await model.find(owner, ids)]
    raise AssertionError(step)


def untimed(record: ImageRecord) -> ImageRecord:
    """Return a record without the time of its deletion."""
    return record.model_copy(update={"updated_at": None})


def untimed_hit(hit: Hit) -> Hit:
    """Return a hit whose record has no time of its deletion."""
    return replace(hit, record=untimed(hit.record))


@asynccontextmanager
async def each(folder: Path) -> AsyncIterator[list[ReadModel]]:
    """Empty read models of every kind, the engine first."""
    name = f"test-{uuid.uuid4().hex}"
    async with AsyncExitStack() as stack:
        # Opening an engine takes a second: the examples share one, emptied before each.
        engine = QdrantReadModel(
            reused_points(QdrantSettings(path=folder / name)), Derivation(), threads=1, longest_s=60
        )
        await engine.open()
        stack.push_async_callback(engine.close)
        opened: list[ReadModel] = [engine, await stack.enter_async_context(in_memory(name))]
        if SERVER:
            opened.append(await stack.enter_async_context(open_read_model(QdrantSettings(url=SERVER, collection=name))))
            stack.callback(lambda: QdrantClient(url=SERVER).delete_collection(name))
        yield opened


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.lists(writes, min_size=4, max_size=25), asked=st.lists(reads, min_size=3, max_size=8))
async def test_random_writes_give_equal_answers(
    tmp_path: Path, written: list[tuple[Any, ...]], asked: list[tuple[Any, ...]]
) -> None:
    """After the same writes every record, page, scan, count and search is equal."""
    async with each(tmp_path) as (first, *others):
        for step in written:
            for model in (first, *others):
                await write(model, step)
        reference = [await read(first, step) for step in asked]
        stored = [await first.get(name) for name in IMAGES]
        for other in others:
            assert [found and untimed(found) for found in [await other.get(name) for name in IMAGES]] == [
                found and untimed(found) for found in stored
            ]
            for step, expected in zip(asked, reference, strict=True):
                assert await read(other, step) == expected, step


@pytest.mark.parametrize(
    "untranslated",
    [
        models.Filter(must=[models.FieldCondition(key="deleted", match=models.MatchValue(value=False))]),
        models.Filter(must=[models.FieldCondition(key="a", values_count=models.ValuesCount(gt=1))]),
        models.Filter(must=[models.IsNullCondition(is_null=models.PayloadField(key="a"))]),
        models.Filter(min_should=models.MinShould(conditions=[equals("a", 1)], min_count=1)),
    ],
)
def test_what_the_engine_would_answer_otherwise_is_refused(untranslated: models.Filter) -> None:
    """A condition without a translation, such as a boolean, raises instead of matching otherwise."""
    with pytest.raises(TypeError, match=r"translated|booleans"):
        edge_translation.to_filter(untranslated)
