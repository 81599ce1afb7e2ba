"""Contract of the read model, on the engine in process, by the server's calls, and on a real server.

The server's calls run against qdrant-client's own model of a server in memory; with DARKROOM_TEST_QDRANT_URL set,
against that server too.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.values import ImageState, StageState, new_image_id
from streams.concurrency.circuit_breaker import Breakers
from streams.errors import DependencyUnavailable, NotReady
from streams.read_model import with_breakers
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.qdrant.conditions import unchanged
from streams.read_model.qdrant.documents import new_token
from streams.read_model.qdrant.model import QdrantReadModel
from streams.read_model.records import HISTORY_LIMIT, Change, Filters, HistoryEntry, ImageRecord, StageRecord
from streams.read_model.with_breakers import behind
from streams.settings import BreakerSettings, QdrantSettings
from tests.support.read_models import added, in_memory, merge, ref, stub, vector


async def test_a_new_record_is_read_as_written(model: ReadModel) -> None:
    """A record exists from `begin` on, without a vector; a second `begin` changes nothing."""
    record = stub(bucket="holiday", filename="x.jpg", context={"a": [1, {"b": None}], "c": "d"})
    assert await model.get(record.image_id) is None
    await model.begin(record)
    assert await model.get(record.image_id) == record
    await merge(model, record.image_id, 1, {"width": 7})
    await model.begin(record)
    assert await model.get(record.image_id) == record.model_copy(update={"width": 7})
    assert await model.vector_of(record.image_id) is None


async def test_merges_change_only_their_keys(model: ReadModel) -> None:
    """Merging keys, stages or the vector leaves everything else unchanged."""
    record = stub()
    done = StageRecord(state=StageState.DONE, version="1", duration_ms=3, result=ref("a"))
    skipped = StageRecord(state=StageState.SKIPPED, reason="model-unavailable", message="no weights")
    await model.begin(record)
    await merge(model, record.image_id, 1, {"text": "Hello", "text_confidence": 0.5}, stages={"ocr": done})
    await merge(model, record.image_id, 1, {"width": 10}, stages={"detector": skipped})
    await merge(model, record.image_id, 1, {"has_vector": True}, vector=vector(1))
    await merge(model, record.image_id, 1, {})
    found = await model.get(record.image_id)
    assert found is not None
    assert (found.text, found.text_confidence, found.width, found.has_vector) == ("Hello", 0.5, 10, True)
    assert found.stages == {"ocr": done, "detector": skipped}
    stored = await model.vector_of(record.image_id)
    assert stored == pytest.approx(vector(1), abs=1e-5)


async def test_an_update_returns_the_image_as_it_is_afterwards(model: ReadModel) -> None:
    """An update returns the keys it names as they are afterwards, also if nothing changes; None of a missing image."""
    record = stub()
    await model.begin(record)
    done = StageRecord(state=StageState.DONE)
    await merge(model, record.image_id, 1, {"width": 7}, stages={"ocr": done})
    for change in (Change({"height": 8, "frames": 2}), None):
        found = await model.update(record.image_id, lambda _: change, keys=("width", "frames"))  # noqa: B023
        assert found is not None
        assert (found.width, found.frames, found.stages) == (7, 2, {"ocr": done})
    known = await model.get(record.image_id)
    assert known is not None and known.height == 8
    assert await model.update(stub().image_id, lambda _: Change({"width": 7})) is None


async def test_concurrent_updates_are_all_made(model: ReadModel) -> None:
    """Each of many updates at once changes the image as the one before it left it."""
    record = stub()
    await model.begin(record)

    def change(known: ImageRecord) -> Change:
        time.sleep(0.001)  # another thread would read meanwhile
        stage = StageRecord(state=StageState.DONE)
        return Change({"width": (known.width or 0) + 1}, {f"stage-{known.width or 0}": stage})

    await asyncio.gather(*(model.update(record.image_id, change, keys=("width",)) for _ in range(20)))
    known = await model.get(record.image_id)
    assert known is not None and (known.width, len(known.stages)) == (20, 20)


async def test_an_update_sees_what_another_process_wrote_meanwhile() -> None:
    """A write between an update's reading and its own is not overwritten: the change is made of the new record."""
    async with in_memory("meanwhile") as model:
        await check_written_meanwhile(model)


async def check_written_meanwhile(model: QdrantReadModel) -> None:
    """Write an image while it is updated."""
    record = stub()
    await model.begin(record)
    seen: list[int | None] = []
    done = StageRecord(state=StageState.DONE)

    def change(known: ImageRecord) -> Change:
        seen.append(known.width)
        if len(seen) == 1:  # while the update is between its reading and its writing
            payload, other = model._found([record.image_id], True)[record.image_id], Change({"width": 1}, {"ocr": done})
            model._points.write([model._derivation.update(payload, other, new_token(), unchanged(payload))])
        return Change({"width": (known.width or 0) + 10}, {"resizer": done}, history={"bb": entry("b")})

    known = await model.update(record.image_id, change, keys=("width",))
    assert seen == [None, 1]
    assert known is not None and (known.width, set(known.stages)) == (11, {"ocr", "resizer"})
    assert set(await model.history(record.image_id)) == {"bb"}


async def test_analyses_are_merged_by_stage(model: ReadModel) -> None:
    """The analysis of one stage replaces its own keys and leaves those of the other stages."""
    record = stub()
    await model.begin(record)
    await merge(model, record.image_id, 1, {}, analysis={"sharpness": {"score": 1.5, "side": 512}})
    await merge(model, record.image_id, 1, {}, analysis={"aesthetics": {"score": 4}})
    await merge(model, record.image_id, 1, {}, analysis={"sharpness": {"score": 2.5}})
    await merge(model, record.image_id, 2, {}, analysis={"sharpness": {"score": 9}})
    found = await model.get(record.image_id)
    assert found is not None
    assert found.analysis == {"sharpness": {"score": 2.5}, "aesthetics": {"score": 4}}


async def test_a_repeated_stage_replaces_its_record(model: ReadModel) -> None:
    """A stage that is done after a failure has no trace of it."""
    record = stub()
    await model.begin(record)
    failed = StageRecord(state=StageState.FAILED, reason="internal-error", message="boom", attempts=3)
    await merge(model, record.image_id, 1, {"error_code": "internal-error"}, stages={"ocr": failed})
    done = StageRecord(state=StageState.DONE, version="2")
    await merge(model, record.image_id, 1, {"error_code": None}, stages={"ocr": done})
    found = await model.get(record.image_id)
    assert found is not None
    assert found.stages == {"ocr": done}
    assert found.error_code is None


async def test_writes_of_other_generations_are_ignored(model: ReadModel) -> None:
    """Writes of a lower or higher generation, or for a missing point, change nothing."""
    record = stub(generation=3)
    await merge(model, record.image_id, 3, {"width": 1}, stages={"ocr": StageRecord(state=StageState.DONE)})
    await merge(model, record.image_id, 3, {"width": 1}, vector=vector(1))
    assert await model.get(record.image_id) is None
    await model.begin(record)
    for generation in (1, 2, 4):
        stage = {"ocr": StageRecord(state=StageState.DONE)}
        await merge(model, record.image_id, generation, {"width": 1}, stages=stage, vector=vector(1))
    await model.begin(stub(record.image_id, generation=2))
    assert await model.get(record.image_id) == record
    assert await model.vector_of(record.image_id) is None


async def test_a_newer_generation_starts_empty(model: ReadModel) -> None:
    """A higher generation removes stages, text and vector of the older one."""
    image_id = await added(model, seed=1, text="old", has_vector=True)
    newer = stub(image_id, generation=2)
    await model.begin(newer)
    assert await model.get(image_id) == newer
    assert await model.vector_of(image_id) is None
    assert await model.search_vector("anna", vector(1), limit=5) == []
    assert await model.search_words("anna", "old", limit=5) == []
    await merge(model, image_id, 2, {"text": "new"}, vector=vector(2))
    assert [hit.record.text for hit in await model.search_vector("anna", vector(2), limit=5)] == ["new"]


async def test_another_owner_cannot_change_an_image(model: ReadModel) -> None:
    """A newer record or deletion of the same id by another owner has no effect."""
    image_id = await added(model, owner="anna", text="mine")
    before = await model.get(image_id)
    await model.begin(stub(image_id, owner="bert", generation=9))
    await model.write_tombstone(image_id, "bert", 9)
    assert await model.get(image_id) == before


async def test_a_tombstone_contains_no_personal_data(model: ReadModel) -> None:
    """After a deletion no name, text, label, vector or context is left, and only `get` returns the tombstone."""
    image_id = await added(
        model, seed=1, text="secret", labels=["person"], filename="me.jpg", context={"a": 1}, has_vector=True,
        original=ref("a").model_dump(),
    )  # fmt: skip
    await model.write_tombstone(image_id, "anna", 2)
    found = await model.get(image_id)
    assert found is not None
    assert found.updated_at is not None
    expected = ImageRecord(
        image_id=image_id, owner="anna", generation=2, deleted=True, state=ImageState.DELETED,
        updated_at=found.updated_at,
    )  # fmt: skip
    assert found == expected
    assert await model.vector_of(image_id) is None
    assert await model.find("anna", [image_id]) == []
    assert await model.search_vector("anna", vector(1), limit=5) == []
    assert await model.search_words("anna", "secret", limit=5) == []
    assert await model.search_words("anna", "person", limit=5) == []
    assert await model.uses_of("anna", "a" * 64) == 0
    assert await model.count("anna") == {}


async def test_a_tombstone_wins(model: ReadModel) -> None:
    """Later writes without a higher generation, and a second deletion, change nothing."""
    image_id = new_image_id()
    await model.write_tombstone(image_id, "anna", 2)
    buried = await model.get(image_id)
    assert buried is not None
    assert buried.deleted
    for generation in (1, 2):
        await model.begin(stub(image_id, generation=generation))
        await merge(model, image_id, generation, {"text": "late"}, vector=vector(1))
        await model.write_tombstone(image_id, "anna", generation)
    assert await model.get(image_id) == buried
    assert await model.vector_of(image_id) is None


async def test_a_deletion_of_the_same_generation_wins(model: ReadModel) -> None:
    """A deletion of the generation of an existing image deletes it."""
    image_id = await added(model, text="here")
    await model.write_tombstone(image_id, "anna", 1)
    found = await model.get(image_id)
    assert found is not None
    assert found.deleted


async def test_a_deletion_of_an_older_generation_does_nothing(model: ReadModel) -> None:
    """A deletion older than the image's generation has no effect."""
    record = stub(generation=5)
    await model.begin(record)
    await model.write_tombstone(record.image_id, "anna", 4)
    assert await model.get(record.image_id) == record


async def test_find_keeps_order_and_owner(model: ReadModel) -> None:
    """Images are returned in the order requested, without other owners', unknown and invalid ids."""
    first, second, other = await added(model), await added(model), await added(model, owner="bert")
    requested = [second, other, new_image_id(), "not-an-id", first]
    assert [record.image_id for record in await model.find("anna", requested)] == [second, first]
    assert await model.find("anna", []) == []
    assert await model.get("not-an-id") is None


async def test_vector_search_ranks_by_similarity(model: ReadModel) -> None:
    """Vector search ranks by cosine within one owner, regardless of other owners' images."""
    for seed in range(40):
        await added(model, owner="bert", seed=100 + seed)
    ids = {seed: await added(model, seed=seed) for seed in range(6)}
    await added(model)  # no vector yet
    near = [a + 0.02 * b for a, b in zip(vector(3), vector(99), strict=True)]
    hits = await model.search_vector("anna", near, limit=3)
    cosines = sorted((sum(a * b for a, b in zip(near, vector(s), strict=True)) for s in range(6)), reverse=True)
    norm = math.sqrt(sum(a * a for a in near))
    assert hits[0].record.image_id == ids[3]
    assert hits[0].matched == ("meaning",)
    assert [hit.score for hit in hits] == pytest.approx([c / norm for c in cosines[:3]], abs=1e-4)
    assert len(await model.search_vector("anna", near, limit=50)) == 6
    assert len(await model.search_vector("bert", near, limit=50)) == 40


async def test_word_search_ignores_case(model: ReadModel) -> None:
    """All words must occur in the text as whole words."""
    sign = await added(model, text="STOP! Ahead: road-works (till 18:00), Zürich")
    await added(model, text="ahead of its time")
    await added(model, owner="bert", text="stop ahead")
    await added(model, text=None)
    for words in ("stop", "ahead stop", "ROAD works", "18", "zürich", " stop...AHEAD "):
        hits = await model.search_words("anna", words, limit=9)
        assert [(hit.record.image_id, hit.matched, hit.score) for hit in hits] == [(sign, ("text",), 1.0)], words
    for words in ("sto", "stop nothing", "", "  ", "!?", "stopahead"):
        assert await model.search_words("anna", words, limit=9) == [], words
    assert len(await model.search_words("anna", "ahead", limit=9)) == 2


async def test_labels_are_found_by_name(model: ReadModel) -> None:
    """Not all words need match if some name a whole label; more matched words score higher."""
    light = await added(model, labels=["traffic light", "Person"])
    person = await added(model, labels=["person"])
    both = await added(model, labels=["bus"], text="a person waits for the bus")
    hits = await model.search_words("anna", "person", limit=9)
    assert {hit.record.image_id: hit.matched for hit in hits} == {
        both: ("text",), person: ("label",), light: ("label",),
    }  # fmt: skip
    hits = await model.search_words("anna", "traffic light person", limit=9)
    assert [(hit.record.image_id, hit.score) for hit in hits] == [(light, 1.0), (person, pytest.approx(1 / 3))]
    assert await model.search_words("anna", "light person tree", limit=9) != []
    assert await model.search_words("anna", "light tree", limit=9) == []
    hits = await model.search_words("anna", "BUS", limit=9)
    assert [(hit.record.image_id, hit.matched) for hit in hits] == [(both, ("text", "label"))]


async def test_equal_scores_are_ordered_by_age(model: ReadModel) -> None:
    """Of equal scores the newest comes first, and the limit drops the oldest."""
    ids = [f"01900000-000{n}-7000-8000-000000000000" for n in range(5)]
    for image_id in random.Random(1).sample(ids, 5):
        await model.begin(stub(image_id))
        await merge(model, image_id, 1, {"text": "same"})
    hits = await model.search_words("anna", "same", limit=3)
    assert [hit.record.image_id for hit in hits] == [ids[4], ids[3], ids[2]]


async def test_images_are_counted_by_state(model: ReadModel) -> None:
    """Counting is by state, of one owner or of all, without tombstones."""
    for state in ("completed", "completed", "failed"):
        await added(model, state=state)
    await added(model, owner="bert")
    await model.write_tombstone(await added(model), "anna", 2)
    assert await model.count("anna") == {"completed": 2, "failed": 1}
    assert await model.count() == {"completed": 2, "failed": 1, "processing": 1}
    assert await model.count("missing") == {}


async def test_uses_of_bytes_are_counted(model: ReadModel) -> None:
    """The images of one owner with the same original or master are counted, each once."""
    a, b = ref("a").model_dump(), ref("b").model_dump()
    await added(model, original=a, master=b)
    await added(model, original=a, master=a)
    await added(model, owner="bert", original=a)
    await added(model, original=a, state="deleted")
    assert await model.uses_of("anna", "a" * 64) == 2
    assert await model.uses_of("anna", "b" * 64) == 1
    assert await model.uses_of("anna", "c" * 64) == 0


async def test_all_images_are_scanned_by_age(model: ReadModel) -> None:
    """A scan returns the images of all owners once, oldest first, page by page."""
    ids = [await added(model, owner=owner) for owner in ("anna", "bert", "carl", "anna", "bert")]
    pages: list[list[str]] = []
    after = None
    while page := await model.scan(after=after, limit=2):
        pages.append([record.image_id for record in page])
        after = pages[-1][-1]
    assert pages == [ids[:2], ids[2:4], ids[4:]]
    assert [record.image_id for record in await model.scan()] == ids


async def test_a_scan_may_be_of_one_state(model: ReadModel) -> None:
    """A scan of one state returns no other, and tombstones only for the state deleted."""
    done, waiting, buried = await added(model, state="completed"), await added(model), await added(model)
    await model.write_tombstone(buried, "anna", 2)
    going = await added(model, state="deleted")

    async def found(state: ImageState | None = None, after: str | None = None) -> list[str]:
        return [record.image_id for record in await model.scan(state=state, after=after)]

    assert await found() == [done, waiting, going]
    assert await found(ImageState.PROCESSING) == [waiting]
    assert await found(ImageState.COMPLETED, after=done) == []
    assert await found(ImageState.DELETED) == [buried, going]
    assert await found(ImageState.DELETED, after=buried) == [going]


async def test_only_tombstones_are_purged(model: ReadModel) -> None:
    """A tombstone of at most the given generation is removed; other images and newer tombstones stay."""
    alive, buried = await added(model, seed=1), await added(model, seed=2)
    await model.write_tombstone(buried, "anna", 2)
    await model.purge(buried, 1)
    await model.purge(alive, 9)
    await model.purge(new_image_id(), 9)
    assert [record.image_id for record in await model.scan(state=ImageState.DELETED)] == [buried]
    await model.purge(buried, 2)
    assert await model.get(buried) is None
    assert await model.scan(state=ImageState.DELETED) == []
    assert [record.image_id for record in await model.scan()] == [alive]
    assert await model.vector_of(alive) is not None


def at(milliseconds: int, rest: int) -> str:
    """Return an image id of a time; ids of one time are ordered by `rest`."""
    return str(uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | 0b10 << 62 | rest))


async def test_a_listing_is_newest_first(model: ReadModel) -> None:
    """Pages of one owner's images have no gap or repetition, also within one millisecond."""
    ids = [at(1_700_000_000_000 + moment, rest) for moment in (0, 5, 6) for rest in range(1, 6)]
    for image_id in random.Random(2).sample(ids, len(ids)):
        await model.begin(stub(image_id))
    await added(model, owner="bert")
    for size in (1, 2, 4, 7, 15, 16):
        for oldest_first in (False, True):
            pages: list[str] = []
            beyond = None
            while page := await model.page("anna", Filters(), limit=size, beyond=beyond, oldest_first=oldest_first):
                assert len(page) == size or len(pages) + len(page) == len(ids)
                pages += [record.image_id for record in page]
                beyond = pages[-1]
            assert pages == sorted(ids, reverse=not oldest_first), (size, oldest_first)


async def test_a_listing_is_stable_while_images_change(model: ReadModel) -> None:
    """Images added or deleted between two pages neither shift the next page nor repeat an image."""
    ids = [await added(model) for _ in range(6)]
    first = await model.page("anna", Filters(), limit=2)
    await added(model)
    await model.write_tombstone(ids[4], "anna", 2)
    await model.write_tombstone(ids[2], "anna", 2)
    await merge(model, ids[1], 1, {"state": "deleted"})
    second = await model.page("anna", Filters(), limit=2, beyond=first[-1].image_id)
    assert [record.image_id for record in first + second] == [ids[5], ids[4], ids[3], ids[0]]


async def test_a_listing_is_filtered(model: ReadModel) -> None:
    """Each filter excludes other images, and several combine."""
    red = await added(
        model, state="completed", bucket="trip", tags=["red", "big"], category="cars", labels=["Traffic Light", "bus"],
        submitted_at="2026-01-02T00:00:00.000Z", text="No parking, ever",
    )  # fmt: skip
    blue = await added(
        model, state="failed", tags=["blue", "big"], labels=["bus"], submitted_at="2026-01-03T00:00:00.000Z"
    )
    plain = await added(model, bucket="trip", category="Cars")

    async def found(**wanted: Any) -> list[str]:
        return [record.image_id for record in await model.page("anna", Filters(**wanted), limit=9)]

    def day(number: int) -> datetime:
        return datetime(2026, 1, number, tzinfo=UTC)

    assert await found() == [plain, blue, red]
    assert await found(state=ImageState.FAILED) == [blue]
    assert await found(state=ImageState.DELETED) == []
    assert await found(bucket="trip") == [plain, red]
    assert await found(tags=("big",)) == [blue, red]
    assert await found(tags=("big", "red")) == [red]
    assert await found(tags=("Red",)) == await found(tags=("bi",)) == []
    assert await found(category="cars") == [red]
    assert await found(labels=("bus",)) == [blue, red]
    assert await found(labels=("BUS", "traffic  light")) == [red]
    assert await found(labels=("light",)) == []
    assert await found(text="PARKING no") == [red]
    assert await found(text="park") == []
    assert await found(since=day(2)) == [blue, red]
    assert await found(since=day(3)) == await found(since=day(2) + timedelta(milliseconds=1)) == [blue]
    assert await found(until=day(3)) == [red]
    assert await found(until=day(2)) == []
    east = datetime(2026, 1, 2, 1, tzinfo=timezone(timedelta(hours=1)))
    assert await found(since=east, until=day(3)) == [red]
    assert await found(bucket="trip", tags=("big",), state=ImageState.COMPLETED) == [red]
    assert await found(bucket="trip", tags=("blue",)) == []


async def test_changed_annotations_are_filtered_by_their_new_values(model: ReadModel) -> None:
    """Changed or removed tags and categories are filtered by their current values."""
    image_id = await added(model, tags=["red"], category="cars", context={"a": 1, "b": 2})
    await merge(model, image_id, 1, {"tags": ["blue"], "category": None, "context": {"b": 3}})
    (record,) = await model.page("anna", Filters(tags=("blue",)), limit=9)
    assert (record.tags, record.category, record.context) == (("blue",), None, {"b": 3})
    assert await model.page("anna", Filters(tags=("red",)), limit=9) == []
    assert await model.page("anna", Filters(category="cars"), limit=9) == []
    await merge(model, image_id, 1, {"tags": [], "context": {}})
    (record,) = await model.page("anna", Filters(), limit=9)
    assert (record.tags, record.context) == ((), {})


async def test_the_check_of_a_working_read_model_passes(model: ReadModel) -> None:
    """The check returns without an error."""
    await model.check()


Write = tuple[str, int]
WRITES: list[Write] = [(name, generation) for name in ("text", "labels", "vector", "size") for generation in (1, 2)]


async def _apply(model: ReadModel, image_id: str, write: Write) -> None:
    name, generation = write
    stage = {name: StageRecord(state=StageState.DONE, version=str(generation))}
    if name == "tombstone":
        await model.write_tombstone(image_id, "anna", generation)
        return
    await model.begin(stub(image_id, generation=generation))
    if name == "text":
        await merge(model, image_id, generation, {"text": f"text of {generation}"}, stages=stage)
    elif name == "labels":
        await merge(model, image_id, generation, {"labels": [f"label{generation}"]}, stages=stage)
    elif name == "size":
        await merge(model, image_id, generation, {"width": generation, "height": generation}, stages=stage)
    else:
        await merge(model, image_id, generation, {"has_vector": True}, stages=stage, vector=vector(generation))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(WRITES),
    repeats=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 16))),
    buried=st.booleans(),
)
async def test_writes_commute_and_repeat(
    model: ReadModel, order: list[Write], repeats: list[tuple[int, int]], buried: bool
) -> None:
    """The same facts in any order, with repeats, result in the same record and vector."""

    async def after(writes: list[Write]) -> tuple[ImageRecord, list[float] | None]:
        image_id = new_image_id()
        for write in writes:
            await _apply(model, image_id, write)
        found = await model.get(image_id)
        assert found is not None
        return found.model_copy(update={"image_id": "", "updated_at": None}), await model.vector_of(image_id)

    ordered = [*WRITES, ("tombstone", 2)] if buried else WRITES
    shuffled = list(order)
    for what, where in repeats:
        shuffled.insert(where, order[what])
    if buried:
        shuffled.insert(len(repeats), ("tombstone", 2))
    assert await after(shuffled) == await after(ordered)


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    """The in-process read model returns the same results after closing and opening."""
    where = QdrantSettings(path=tmp_path)
    async with open_read_model(where) as model:
        image_id = await added(model, seed=1, text="kept", labels=["bus"], original=ref("a").model_dump())
        gone = await added(model, seed=2, text="gone")
        await model.write_tombstone(gone, "anna", 2)
        before = await model.get(image_id)
    async with open_read_model(where) as model:
        assert await model.get(image_id) == before
        assert [hit.record.image_id for hit in await model.search_words("anna", "kept", limit=5)] == [image_id]
        assert [hit.record.image_id for hit in await model.search_words("anna", "bus", limit=5)] == [image_id]
        assert [hit.record.image_id for hit in await model.search_vector("anna", vector(1), limit=5)] == [image_id]
        assert await model.uses_of("anna", "a" * 64) == 1
        await merge(model, gone, 1, {"text": "late"})
        assert await model.search_words("anna", "late", limit=5) == []
        await model.purge(gone, 2)
    async with open_read_model(where) as model:
        assert await model.get(gone) is None
        assert [record.image_id for record in await model.scan()] == [image_id]


def test_every_call_is_behind_a_breaker() -> None:
    """No call of the protocol is without one."""
    calls = {name for name, member in vars(ReadModel).items() if not name.startswith("_") and callable(member)}
    assert calls == with_breakers._READING | with_breakers._WRITING | {"check"}


async def test_the_breaker_of_writes_opens_until_a_probe_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After repeated write failures reads continue; waiting for the breaker probes with a write that leaves no data."""
    breakers = Breakers(BreakerSettings(open_s=0.05))
    async with open_read_model(QdrantSettings(path=tmp_path)) as local:
        model = behind(breakers, local)
        full = True

        async def write_tombstone(image_id: str, owner: str, generation: int) -> None:
            if full:
                raise DependencyUnavailable("disk full")
            await original(image_id, owner, generation)

        original = local.write_tombstone
        monkeypatch.setattr(local, "write_tombstone", write_tombstone)
        for _ in range(5):
            with pytest.raises(DependencyUnavailable, match="disk full"):
                await model.write_tombstone(new_image_id(), "anna", 1)
        assert await model.get(new_image_id()) is None
        waiting = asyncio.create_task(breakers.all_closed())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        full = False
        await asyncio.wait_for(waiting, 60)
        image_id = await added(model)
        assert [record.image_id for record in await model.scan()] == [image_id]
        assert await model.scan(state=ImageState.DELETED) == []


async def test_a_folder_open_elsewhere_is_not_ready(tmp_path: Path) -> None:
    """Opening a folder that another process has open raises NotReady with the setting to use."""
    script = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom streams.settings import QdrantSettings\n"
        "from streams.read_model.factory import open_read_model\n"
        "async def main():\n"
        "    async with open_read_model(QdrantSettings(path=Path(sys.argv[1]))):\n"
        "        print('open', flush=True)\n        sys.stdin.read()\n"
        "asyncio.run(main())\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(NotReady, match="DARKROOM_QDRANT__URL"):
            async with open_read_model(QdrantSettings(path=tmp_path)):
                pass
    finally:
        other.communicate()


async def test_an_unavailable_server_raises() -> None:
    """A closed port is DependencyUnavailable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(DependencyUnavailable):
        async with open_read_model(QdrantSettings(url=f"http://127.0.0.1:{port}", timeout_s=2)):
            pass


@pytest.mark.parametrize(
    ("status", "after_s"),
    [("503 Service Unavailable", None), ("429 Too Many Requests", 7.0), ("502 Bad Gateway", None)],
)
async def test_a_busy_server_raises(status: str, after_s: float | None) -> None:
    """503, 429 and 502 are DependencyUnavailable, with the server's Retry-After."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nRetry-After: 7\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(DependencyUnavailable) as caught:
        async with open_read_model(QdrantSettings(url=url, timeout_s=2)):
            pass
    server.close()
    assert caught.value.after_s == after_s


async def test_a_silent_server_times_out() -> None:
    """A server that accepts and never answers is DependencyUnavailable after the configured timeout."""

    async def nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    server = await asyncio.start_server(nothing, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(DependencyUnavailable):
        async with open_read_model(QdrantSettings(url=url, timeout_s=1)):
            pass
    server.close()


def entry(event_id: str, *, run: int = 0, at: str = "2026-01-01T00:00:00.000Z") -> HistoryEntry:
    """Return an entry of a history."""
    return HistoryEntry(
        event_id=event_id, type="t", generation=1, stage="ocr", state=StageState.DONE, run=run, occurred_at=at,
        recorded_at=at, worker="here/1", trace_id="0" * 32, topic="image.facts", partition=1, offset=2,
    )  # fmt: skip


async def test_history_entries_accumulate(model: ReadModel) -> None:
    """Entries arrive in any order and repeatedly, with or without other keys, which stay unchanged."""
    record = stub()
    await model.begin(record)
    assert await model.history(record.image_id) == {}
    first, second = entry("a"), entry("b", run=7)
    await merge(model, record.image_id, 1, {"width": 3}, history={"aa": first})
    await merge(model, record.image_id, 1, {}, history={"bb-1": second})
    await merge(model, record.image_id, 1, {}, history={"aa": first})
    assert await model.history(record.image_id) == {"aa": first, "bb-1": second}
    assert await model.get(record.image_id) == record.model_copy(update={"width": 3})


async def test_a_history_is_written_for_its_generation_only(model: ReadModel) -> None:
    """No entry is written to a point of another generation, to a missing one, or to a tombstone."""
    record, missing = stub(), new_image_id()
    await model.begin(record)
    await merge(model, record.image_id, 2, {}, history={"aa": entry("a")})
    await merge(model, missing, 1, {}, history={"aa": entry("a")})
    assert await model.history(record.image_id) == {}
    assert await model.history(missing) == {}
    assert await model.history("no id") == {}


async def test_a_history_can_be_trimmed_and_passed_on(model: ReadModel) -> None:
    """Above the limit the oldest reruns are removed; a newer generation starts with exactly the given entries."""
    record = stub()
    await model.begin(record)
    first, second = entry("a"), entry("b")
    await merge(model, record.image_id, 1, {}, history={"aa": first, "bb": second})
    later = {f"{n}": entry(f"{n}", run=7, at="2026-02-01T00:00:00.000Z") for n in range(HISTORY_LIMIT)}
    await merge(model, record.image_id, 1, {}, history=later)
    kept = await model.history(record.image_id)
    assert len(kept) == HISTORY_LIMIT
    assert kept.keys() >= {"aa", "bb"} and "0" not in kept
    await model.begin(record.model_copy(update={"generation": 2}), history={"bb": second})
    assert await model.history(record.image_id) == {"bb": second}
    await model.begin(record.model_copy(update={"generation": 3}))
    assert await model.history(record.image_id) == {}


async def test_a_history_is_deleted_with_its_image(model: ReadModel) -> None:
    """A deleted image has no entries, and none are added."""
    record = stub()
    await model.begin(record)
    await merge(model, record.image_id, 1, {}, history={"aa": entry("a")})
    await model.write_tombstone(record.image_id, record.owner, 2)
    await merge(model, record.image_id, 2, {}, history={"bb": entry("b")})
    assert await model.history(record.image_id) == {}
