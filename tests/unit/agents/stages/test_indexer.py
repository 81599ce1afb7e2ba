"""The indexer on an in-process read model and a file store in a folder."""

from __future__ import annotations

import random

import pytest

from agents.stages.indexer import STAGE, IndexerSettings, Tools, index, probe
from schemas.events.envelope import Event
from schemas.events.facts import DeletionRequested, Fact
from schemas.events.outcomes import ImageCompleted, ImageDeleted, ImageFailed, ImageRejected
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ErrorCode, ImageState, StageState, new_image_id
from streams import topics
from streams.errors import DependencyUnavailable, Malformed
from streams.object_store.keys import image_key, original_key, receipt_key, result_key
from streams.object_store.protocol import FileStore
from streams.read_model.records import ImageRecord
from streams.settings import Settings
from streams.stage import Emit, Resources, Skip
from streams.telemetry import metrics
from streams.telemetry.health_board import HealthBoard
from tests.support.facts import Facts, ref


async def outcomes_of(event: Event, tools: Tools) -> list[Event]:
    """Return the outcomes that the indexer emits for an event."""
    answer = await index(event, tools)
    assert isinstance(answer, Emit), answer
    assert all(topic is topics.OUTCOMES for topic, _ in answer.events)
    return [outcome for _, outcome in answer.events]


async def superseded(event: Event, tools: Tools) -> bool:
    answer = await index(event, tools)
    return isinstance(answer, Skip) and answer.code is ErrorCode.SUPERSEDED


async def record_of(image_id: str, tools: Tools) -> ImageRecord:
    found = await tools.read_model.get(image_id)
    assert found is not None
    return found


def timeless(record: ImageRecord) -> ImageRecord:
    return record.model_copy(update={"image_id": "", "updated_at": None, "finished_at": None, "finished_by": None})


async def test_the_stage_checks_the_read_model_and_the_store(tools: Tools) -> None:
    """The check passes while both work."""
    await probe(tools)


async def test_the_last_fact_completes_the_image(tools: Tools) -> None:
    """Five facts make a completed, searchable image; only the last one emits the outcome, with every stage."""
    image = new_image_id()
    *first, last = Facts(image).all()
    for fact in first:
        assert await outcomes_of(fact, tools) == []
    assert (await record_of(image, tools)).state is ImageState.PROCESSING
    (outcome,) = await outcomes_of(last, tools)
    assert isinstance(outcome, ImageCompleted)
    assert (outcome.image_id, outcome.owner, outcome.generation) == (image, "anna", 1)
    assert set(outcome.stages.values()) == {StageState.DONE}
    record = await record_of(image, tools)
    assert (record.state, record.finished_by, record.text) == (ImageState.COMPLETED, last.id, "Hello world")
    assert (record.filename, record.bucket, record.labels) == ("me.jpg", "trip", ("bus", "person"))
    assert record.stages["ocr"].duration_ms == 5
    assert record.stages["ocr"].result == ref("e")
    assert record.finished_at is not None
    for words in ("hello", "bus"):
        assert [hit.record.image_id for hit in await tools.read_model.search_words("anna", words, limit=5)] == [image]
    assert len(await tools.read_model.search_vector("anna", [1.0] + [0.0] * 511, limit=5)) == 1


@pytest.mark.parametrize("seed", range(12))
async def test_order_does_not_matter(tools: Tools, seed: int) -> None:
    """In any order and with repetitions the record is the same, and only one fact emits the outcome."""
    plain, mixed = new_image_id(), new_image_id()
    for fact in Facts(plain).all():
        await index(fact, tools)
    chance = random.Random(seed)
    facts = Facts(mixed).all() + chance.sample(Facts(mixed).all(), 3) + [Facts(mixed).failed("ocr")]
    chance.shuffle(facts)
    outcomes = [(fact.id, outcome) for fact in facts for outcome in await outcomes_of(fact, tools)]
    completed = {fact_id for fact_id, outcome in outcomes if isinstance(outcome, ImageCompleted)}
    assert len(completed) == 1
    assert len({outcome.id for _, outcome in outcomes if isinstance(outcome, ImageCompleted)}) == 1
    assert timeless(await record_of(mixed, tools)) == timeless(await record_of(plain, tools))
    assert await tools.read_model.vector_of(mixed) == await tools.read_model.vector_of(plain)


async def test_a_rerun_updates_only_its_stage(tools: Tools) -> None:
    """A completed image whose text is read again stays completed, emits no outcome, and has the new text."""
    image = new_image_id()
    *_, ended = [outcome for fact in Facts(image).all() for outcome in await outcomes_of(fact, tools)]
    before = await record_of(image, tools)
    again = Facts(image, run=7)
    for fact in (
        again.text("Good bye"),
        Facts(image).text(),
        again.failed("ocr"),
        Facts(image, run=3).text("Too late"),
    ):
        repeats = await outcomes_of(fact, tools)
        assert {outcome.id for outcome in repeats} <= {ended.id}
    after = await record_of(image, tools)
    assert (after.text, after.stages["ocr"].run, after.state) == ("Good bye", 7, ImageState.COMPLETED)
    assert (after.finished_by, after.finished_at) == (before.finished_by, before.finished_at)
    assert {name: stage for name, stage in after.stages.items() if name != "ocr"} == {
        name: stage for name, stage in before.stages.items() if name != "ocr"
    }


@pytest.mark.parametrize("seed", range(6))
async def test_reruns_merge_in_any_order(tools: Tools, seed: int) -> None:
    """Facts of three runs, shuffled and repeated, make the same record as in order."""
    plain, mixed = new_image_id(), new_image_id()

    def story(image: str) -> list[Fact]:
        sooner, later = Facts(image, run=5), Facts(image, run=9)
        vector = [0.0, 1.0] + [0.0] * 510
        return [*Facts(image).all(), sooner.text("sooner"), sooner.embedded(vector), later.text("later"),
                later.failed("embedder"), later.skipped("resizer")]  # fmt: skip

    for fact in story(plain):
        await index(fact, tools)
    facts = [*story(mixed), *story(mixed)[:4]]
    random.Random(seed).shuffle(facts)
    outcomes = [outcome for fact in facts for outcome in await outcomes_of(fact, tools)]
    assert len({outcome.id for outcome in outcomes if isinstance(outcome, ImageCompleted)}) == 1
    assert timeless(await record_of(mixed, tools)) == timeless(await record_of(plain, tools))
    assert await tools.read_model.vector_of(mixed) == await tools.read_model.vector_of(plain)


async def test_only_the_ending_fact_repeats_the_outcome(tools: Tools) -> None:
    """When everything is delivered twice, only the fact that ended the image repeats its outcome, with the same id."""
    facts = Facts(new_image_id()).all()
    first = [await outcomes_of(fact, tools) for fact in facts]
    again = [await outcomes_of(fact, tools) for fact in facts]
    assert [len(one) for one in first] == [len(one) for one in again] == [0, 0, 0, 0, 1]
    assert first[-1][0].id == again[-1][0].id


async def test_a_crash_between_record_and_outcome_loses_nothing(tools: Tools) -> None:
    """If the record was written but its outcome was not emitted, the redelivered fact emits it."""
    image = new_image_id()
    facts = Facts(image).all()
    for fact in facts[:-1]:
        await index(fact, tools)

    class FailingAtEnd:
        """A read model that becomes unavailable when the ended image is read for its outcome."""

        def __getattr__(self, name: str) -> object:
            return getattr(tools.read_model, name)

        async def get(self, *_: object, **__: object) -> ImageRecord | None:
            raise DependencyUnavailable("gone")

    with pytest.raises(DependencyUnavailable):
        await index(facts[-1], Tools(FailingAtEnd(), tools.files))  # type: ignore[arg-type]
    assert (await record_of(image, tools)).state is ImageState.COMPLETED
    assert [type(outcome) for outcome in await outcomes_of(facts[-1], tools)] == [ImageCompleted]


async def test_a_skipped_stage_does_not_block_completion(tools: Tools) -> None:
    """A missing model skips its stage; the image completes and shows the reason."""
    image = new_image_id()
    facts = Facts(image)
    for fact in (facts.sanitized(), facts.resized(), facts.skipped("embedder"), facts.detected()):
        assert await outcomes_of(fact, tools) == []
    (outcome,) = await outcomes_of(facts.text(""), tools)
    assert isinstance(outcome, ImageCompleted)
    assert outcome.stages["embedder"] is StageState.SKIPPED
    record = await record_of(image, tools)
    assert (record.stages["embedder"].reason, record.has_vector) == ("model-unavailable", False)


async def test_a_profile_sets_the_required_stages(tools: Tools) -> None:
    """An image whose profile requires only text is complete with its text."""
    facts = Facts(new_image_id(), stages=("ocr",))
    assert await outcomes_of(facts.text(), tools) == []
    assert [type(outcome) for outcome in await outcomes_of(facts.sanitized(), tools)] == [ImageCompleted]


@pytest.mark.parametrize("stage", ["sanitizer", "fetcher"])
async def test_a_refused_image_is_rejected_at_once(tools: Tools, stage: str) -> None:
    """One rejection ends the image, with the code and the sentence for the client."""
    image = new_image_id()
    (outcome,) = await outcomes_of(Facts(image).refused(stage), tools)
    assert isinstance(outcome, ImageRejected)
    assert (outcome.code, outcome.message) == (ErrorCode.CORRUPT_IMAGE, "The image is damaged.")
    record = await record_of(image, tools)
    assert (record.state, record.error_code, record.filename) == (ImageState.REJECTED, "corrupt-image", "me.jpg")


async def test_a_failed_stage_fails_the_image_when_all_have_ended(tools: Tools) -> None:
    """A dead-lettered stage fails the image once the others have ended; after a replay it completes."""
    image = new_image_id()
    facts = Facts(image)
    for fact in (facts.sanitized(), facts.failed("ocr"), facts.resized(), facts.embedded()):
        assert await outcomes_of(fact, tools) == []
    (outcome,) = await outcomes_of(facts.detected(), tools)
    assert isinstance(outcome, ImageFailed)
    assert outcome.code is ErrorCode.INTERNAL_ERROR
    assert (await record_of(image, tools)).error_message == "Internal error."
    (mended,) = await outcomes_of(facts.text(), tools)
    assert isinstance(mended, ImageCompleted)
    record = await record_of(image, tools)
    assert (record.state, record.error_code, record.error_message) == (ImageState.COMPLETED, None, None)
    assert await outcomes_of(facts.failed("ocr"), tools) == []
    assert (await record_of(image, tools)).state is ImageState.COMPLETED


async def test_a_failed_fetch_completes_after_a_replay(tools: Tools) -> None:
    """An image that could not be fetched fails at once, is processing again after a replay, and completes."""
    image = new_image_id()
    facts = Facts(image)
    assert [type(outcome) for outcome in await outcomes_of(facts.failed("fetcher"), tools)] == [ImageFailed]
    assert await outcomes_of(facts.sanitized(source_url="https://example.org/x"), tools) == []
    record = await record_of(image, tools)
    assert (record.state, record.finished_at, record.error_code) == (ImageState.PROCESSING, None, None)
    assert record.stages["fetcher"].state is StageState.DONE
    ends = [outcome for fact in facts.all()[1:] for outcome in await outcomes_of(fact, tools)]
    assert [type(outcome) for outcome in ends] == [ImageCompleted]


async def test_older_generations_are_dropped(tools: Tools) -> None:
    """After a newer run has begun, facts of the older one are superseded and change nothing."""
    image = new_image_id()
    for fact in Facts(image).all():
        await index(fact, tools)
    assert await outcomes_of(Facts(image, generation=2).sanitized(), tools) == []
    before = await record_of(image, tools)
    assert (before.generation, before.state, before.text) == (2, ImageState.PROCESSING, None)
    for fact in Facts(image).all():
        assert await superseded(fact, tools)
    assert await record_of(image, tools) == before
    ends = [outcome for fact in Facts(image, generation=2).all()[1:] for outcome in await outcomes_of(fact, tools)]
    assert [(type(outcome), outcome.generation) for outcome in ends] == [(ImageCompleted, 2)]


async def test_facts_of_another_owner_are_dropped(tools: Tools) -> None:
    """Facts of another owner change nothing, whether their generation is equal or higher."""
    image = new_image_id()
    await index(Facts(image).sanitized(), tools)
    before = await record_of(image, tools)
    assert await superseded(Facts(image, owner="bert").text(), tools)
    assert await superseded(Facts(image, owner="bert", generation=2).text(), tools)
    assert await superseded(DeletionRequested(image_id=image, owner="bert", generation=2), tools)
    assert await record_of(image, tools) == before


@pytest.mark.parametrize("bad", [[], [1.0] * 511, [float("nan")] * 512, [float("inf")] * 512, [0.0] * 512])
async def test_an_invalid_vector_is_malformed(tools: Tools, bad: list[float]) -> None:
    """A vector of another length, non-finite or zero becomes a dead letter and does not change the record."""
    image = new_image_id()
    await index(Facts(image).sanitized(), tools)
    before = await record_of(image, tools)
    good = Facts(image).embedded()
    broken = good.model_dump() | {"vector": {"data": Facts(image).embedded(bad or [1.0]).vector.data,  # type: ignore[attr-defined]
                                             "dimensions": len(bad) or 2}}  # fmt: skip
    with pytest.raises(Malformed):
        await index(type(good).model_validate(broken), tools)
    assert await record_of(image, tools) == before


async def test_an_image_that_failed_first_keeps_its_submission(tools: Tools) -> None:
    """An image whose first stage failed has no other fact that states what its producer sent."""
    image = new_image_id()
    sent = {"bucket": "trip", "context": {"order": 7}, "submitted_at": "2026-01-01T00:00:00.000Z"}
    (outcome,) = await outcomes_of(Facts(image).failed("sanitizer").model_copy(update=sent), tools)
    assert isinstance(outcome, ImageFailed)
    assert (outcome.bucket, outcome.context) == ("trip", {"order": 7})
    later = Facts(new_image_id(), stages=("sanitizer", "ocr"))
    assert await outcomes_of(later.sanitized(), tools) == []
    (outcome,) = await outcomes_of(later.failed("ocr"), tools)
    assert isinstance(outcome, ImageFailed)
    assert (outcome.bucket, outcome.filename) == ("trip", "me.jpg")


async def put(files: FileStore, key: str) -> str:
    await files.put(key, b"x", content_type="x/y")
    return key


async def stored(image: str, tools: Tools, *, sha: str = "a", owner: str = "anna", generation: int = 1) -> list[str]:
    """Store and index the objects of a finished image; return the keys of its own."""
    receipt = Receipt(
        job_id=f"{image}.{generation}", image_id=image, owner=owner, generation=generation, kind=ReceiptKind.UPLOAD,
        submitted_at="2026-01-01T00:00:00Z", original=ref(sha),
    )  # fmt: skip
    await tools.files.put(
        receipt_key(receipt.job_id), receipt.model_dump_json().encode(), content_type="application/json"
    )
    for fact in (Facts(image, owner=owner, generation=generation).sanitized(original=ref(sha)),):
        await index(fact, tools)
    for shared in (original_key(owner, sha * 64), result_key(owner, sha * 64, "sanitizer", "1", "p"),
                   result_key(owner, "c" * 64, "ocr", "1", "p")):  # fmt: skip
        await put(tools.files, shared)
    own = [image_key(image, generation, name) for name in ("master.webp", "thumbnail.webp")]
    return [*[await put(tools.files, key) for key in own], receipt_key(receipt.job_id)]


async def keys(tools: Tools) -> set[str]:
    """Return all keys except those of erasures."""
    found = {found.key async for found in tools.files.list("")}
    return {key for key in found if not key.startswith(("erasures/", "erasing/"))}


async def test_a_deletion_leaves_only_a_tombstone(tools: Tools) -> None:
    """Objects, original, results and receipts are removed; the outcome is emitted, and again on a repeated request."""
    image = new_image_id()
    await stored(image, tools)
    deletion = DeletionRequested(image_id=image, owner="anna", generation=2)
    (outcome,) = await outcomes_of(deletion, tools)
    assert isinstance(outcome, ImageDeleted)
    assert await keys(tools) == set()
    record = await record_of(image, tools)
    assert (record.deleted, record.generation, record.filename, record.context) == (True, 2, None, {})
    for fact in Facts(image).all():
        assert await superseded(fact, tools)
    (again,) = await outcomes_of(deletion, tools)
    assert again.id == outcome.id


async def test_a_deletion_keeps_shared_objects(tools: Tools) -> None:
    """Bytes of another image of the owner stay until it is deleted too; those of other owners are never touched."""
    one, two, other = new_image_id(), new_image_id(), new_image_id()
    own = await stored(one, tools)
    await stored(two, tools)
    await stored(other, tools, owner="bert")
    before = await keys(tools)
    await index(DeletionRequested(image_id=one, owner="anna", generation=2), tools)
    assert await keys(tools) == before - set(own)
    await index(DeletionRequested(image_id=two, owner="anna", generation=2), tools)
    left = await keys(tools)
    assert original_key("bert", "a" * 64) in left
    assert not [key for key in left if "anna" in key or one in key or two in key]


async def test_a_deletion_finds_the_original_of_an_unindexed_image(tools: Tools) -> None:
    """An image in progress is deleted by its receipt, and its later facts are dropped."""
    image = new_image_id()
    receipt = Receipt(
        job_id=f"{image}.1", image_id=image, owner="anna", generation=1, kind=ReceiptKind.UPLOAD,
        submitted_at="2026-01-01T00:00:00Z", original=ref("b"),
    )  # fmt: skip
    await tools.files.put(receipt_key(f"{image}.1"), receipt.model_dump_json().encode(), content_type="x/y")
    await put(tools.files, original_key("anna", "b" * 64))
    await outcomes_of(DeletionRequested(image_id=image, owner="anna", generation=2), tools)
    assert await keys(tools) == set()
    assert await superseded(Facts(image).sanitized(), tools)


async def test_a_deletion_of_anothers_unindexed_image_does_nothing(tools: Tools) -> None:
    """Before the read model has an image, its receipt names the owner: others cannot delete it."""
    image = new_image_id()
    receipt = Receipt(
        job_id=f"{image}.1", image_id=image, owner="bert", generation=1, kind=ReceiptKind.UPLOAD,
        submitted_at="2026-01-01T00:00:00Z", original=ref("b"),
    )  # fmt: skip
    await tools.files.put(receipt_key(f"{image}.1"), receipt.model_dump_json().encode(), content_type="x/y")
    await put(tools.files, original_key("bert", "b" * 64))
    before = await keys(tools)
    assert await superseded(DeletionRequested(image_id=image, owner="anna", generation=2), tools)
    assert await keys(tools) == before
    assert await tools.read_model.get(image) is None


async def test_a_deletion_removes_no_foreign_key(tools: Tools) -> None:
    """An original under a key outside the owner's is not removed, regardless of the producer."""
    image = new_image_id()
    foreign = await put(tools.files, "somebody/elses")
    await index(Facts(image).sanitized(original=ref("a", foreign)), tools)
    await index(DeletionRequested(image_id=image, owner="anna", generation=2), tools)
    assert await keys(tools) == {foreign}


async def test_a_deletion_spares_a_newer_generation(tools: Tools) -> None:
    """Objects of a run that began after the deletion stay, and the deletion does not stop it."""
    image = new_image_id()
    await stored(image, tools, generation=1)
    newer = await stored(image, tools, generation=3)
    assert await superseded(DeletionRequested(image_id=image, owner="anna", generation=2), tools)
    assert set(newer) <= await keys(tools)


async def test_an_interrupted_deletion_is_finished(tools: Tools) -> None:
    """A deletion that failed at any point is finished when repeated; no fact revives the image before."""
    image = new_image_id()
    await stored(image, tools)
    deletion = DeletionRequested(image_id=image, owner="anna", generation=2)

    class FailingAfter:
        """An object store that becomes unavailable at the nth deletion."""

        def __init__(self, left: int) -> None:
            self.left = left

        def __getattr__(self, name: str) -> object:
            return getattr(tools.files, name)

        async def delete(self, key: str) -> None:
            if self.left == 0:
                raise DependencyUnavailable("gone")
            self.left -= 1
            await tools.files.delete(key)

    for survived in range(6):
        with pytest.raises(DependencyUnavailable):
            await index(deletion, Tools(tools.read_model, FailingAfter(min(survived, 1))))  # type: ignore[arg-type]
        assert await superseded(Facts(image).text(), tools)
        if len(await keys(tools)) == 1:
            break
    assert [type(outcome) for outcome in await outcomes_of(deletion, tools)] == [ImageDeleted]
    assert await keys(tools) == set()


async def test_outcomes_are_counted_once(tools: Tools) -> None:
    """The metric of ended images increases once per image, however often its facts arrive."""
    counter = metrics.IMAGES.labels("completed")
    before = counter._value.get()
    facts: list[Fact] = Facts(new_image_id()).all()
    for fact in [*facts, *facts]:
        await index(fact, tools)
    assert counter._value.get() == before + 1


async def test_a_rerun_of_the_whole_image_is_not_timed(tools: Tools) -> None:
    """The time from acceptance to the end is that of the first generation: a later one began long after."""
    seconds = metrics.IMAGE_SECONDS.labels("completed")
    image = new_image_id()
    before = seconds._sum.get()
    for fact in Facts(image).all():
        await index(fact, tools)
    timed = seconds._sum.get()
    assert timed > before
    for fact in Facts(image, generation=2).all():
        await index(fact, tools)
    assert seconds._sum.get() == timed


async def test_a_shared_read_model_is_used(tools: Tools) -> None:
    """The indexer uses the read model that the process already has open."""
    resources = Resources(Settings(), tools.files, HealthBoard(), read_model=tools.read_model)
    async with STAGE.open(IndexerSettings(), resources) as opened:
        assert opened.read_model is tools.read_model
    await tools.read_model.check()


@pytest.mark.parametrize("kind", ["refused", "failed"])
async def test_deleting_what_was_never_sanitized_removes_its_bytes(tools: Tools, kind: str) -> None:
    """The original of a rejected or failed image is removed too, if its producer keeps no receipt."""
    image, original = new_image_id(), ref("a", original_key("anna", "a" * 64))
    await tools.files.put(original.key, b"x", content_type="x/y")
    fact = getattr(Facts(image, owner="anna"), kind)("sanitizer").model_copy(update={"original": original})
    await outcomes_of(fact, tools)
    await outcomes_of(DeletionRequested(image_id=image, owner="anna", generation=2), tools)
    assert await tools.files.stat(original.key) is None
