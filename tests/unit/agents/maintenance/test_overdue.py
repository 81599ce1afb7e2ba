"""Which images are unfinished, and the event resent for each, for every combination of record and receipt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.core.merge import decide, learn
from agents.maintenance.overdue import Reason, Waiting, accepted_at, event_to_resend, lost, unfinished
from schemas.events.facts import DeletionRequested, Fact, ImageSanitized
from schemas.events.intake import FetchRequested, ImageFetched, ImageUploaded
from schemas.stored.erasures import Erasure
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ANALYSIS_STAGES, DEFAULT_STAGES, ImageState, Rendition, StageState, job_id_of, new_image_id
from streams.read_model.records import ImageRecord, StageRecord
from tests.support.facts import WHEN, Facts, ref

LATER = "2026-01-01T01:00:00.000Z"
IMAGE = new_image_id()
URL = "https://photos.example/cat.jpg"

ENDED = (StageState.DONE, StageState.SKIPPED, StageState.REJECTED, StageState.FAILED)


def receipt(kind: ReceiptKind = ReceiptKind.UPLOAD, generation: int = 1, **more: object) -> Receipt:
    """Return the receipt of a request."""
    fields = {
        "job_id": job_id_of(IMAGE, generation), "image_id": IMAGE, "owner": "anna", "generation": generation,
        "kind": kind, "submitted_at": WHEN, "filename": "me.jpg", "context": {"note": "private"},
    }  # fmt: skip
    named = {"original": ref("a")} if kind is ReceiptKind.UPLOAD else {"url": URL} if kind is ReceiptKind.FETCH else {}
    return Receipt.model_validate({**fields, **named, **more})


def record_of(*facts: Fact, **more: object) -> ImageRecord:
    """Return the record that the facts produce."""
    keys: dict[str, object] = {}
    stages: dict[str, StageRecord] = {}
    for fact in facts:
        learned = learn(fact)
        keys |= learned.keys
        stages[learned.stage] = StageRecord(state=learned.state, version=fact.report.version)
    fields = {"image_id": IMAGE, "owner": "anna", "generation": 1, "required": DEFAULT_STAGES, "updated_at": LATER}
    return ImageRecord.model_validate({**fields, **keys, "stages": stages, **more})


def erasure(**more: object) -> Erasure:
    """Return the erasure of the image's first generation."""
    fields = {"image_id": IMAGE, "owner": "anna", "generation": 2, "requested_at": WHEN, "leaves_log_by": LATER}
    return Erasure.model_validate({**fields, **more})


def test_an_upload_without_facts_waits_for_the_sanitizer() -> None:
    """The event equals the gateway's: same id, same body, sent to the sanitizer."""
    accepted = receipt()
    (waiting,) = unfinished(None, accepted)
    assert waiting == Waiting("sanitizer", Reason.NO_FACT, accepted_at(accepted))
    event = event_to_resend(waiting, None, accepted)
    assert isinstance(event, ImageUploaded)
    assert event.original == ref("a")
    assert (event.owner, event.filename, event.context) == ("anna", "me.jpg", {"note": "private"})
    assert event.submitted_at == WHEN
    assert event.id == ImageUploaded(image_id=IMAGE, original=ref("a")).id


def test_a_fetch_without_facts_waits_for_the_fetcher() -> None:
    """The event is keyed by the source's host, as on its own topic."""
    accepted = receipt(ReceiptKind.FETCH)
    (waiting,) = unfinished(None, accepted)
    assert waiting.agent == "fetcher"
    event = event_to_resend(waiting, None, accepted)
    assert isinstance(event, FetchRequested)
    assert (event.url, event.key()) == (URL, b"photos.example")


@pytest.mark.parametrize("stage", DEFAULT_STAGES[1:])
def test_a_missing_stage_gets_the_event_the_sanitizer_emitted(stage: str) -> None:
    """The event rebuilt from the record equals the original one, for that stage alone."""
    facts = Facts(IMAGE)
    original = facts.sanitized(source_url=URL)
    others = {
        "resizer": facts.resized(),
        "ocr": facts.text(),
        "detector": facts.detected(),
        "embedder": facts.embedded(),
    }
    record = record_of(original, *(fact for name, fact in others.items() if name != stage))
    (waiting,) = unfinished(record, None)
    assert (waiting.agent, waiting.reason) == (stage, Reason.STAGE_MISSING)
    event = event_to_resend(waiting, record, None)
    assert isinstance(event, ImageSanitized)
    assert event.id == original.id
    differing = {"occurred_at", "report"}
    assert event.model_dump(exclude=differing) == original.model_dump(exclude=differing)
    assert event.report.stage == "sanitizer"


def test_an_image_without_an_end_gets_its_last_fact_again() -> None:
    """Every stage has ended and the image has not: a successful stage emits its fact again."""
    record = record_of(*Facts(IMAGE).all())
    assert decide(record.required, {name: stage.state for name, stage in record.stages.items()}) != record.state
    (waiting,) = unfinished(record, None)
    assert (waiting.agent, waiting.reason) == ("embedder", Reason.NO_END)
    assert isinstance(event_to_resend(waiting, record, None), ImageSanitized)


def test_a_refused_image_without_an_end_is_sanitized_again() -> None:
    """A refused image without an end passes the sanitizer again, from its receipt."""
    record = record_of(Facts(IMAGE).refused())
    (waiting,) = unfinished(record, receipt())
    assert (waiting.agent, waiting.reason) == ("sanitizer", Reason.NO_END)
    assert isinstance(event_to_resend(waiting, record, receipt()), ImageUploaded)
    assert event_to_resend(waiting, record, None) is None  # another service's image: its original is unknown


def test_an_accepted_deletion_is_sent_again() -> None:
    """An accepted deletion is resent until done; one answered 503 is not."""
    alive = record_of(*Facts(IMAGE).all(), state=ImageState.COMPLETED)
    deletion = receipt(ReceiptKind.DELETE, generation=2)
    (waiting,) = unfinished(alive, deletion)
    assert (waiting.agent, waiting.reason) == ("indexer", Reason.NOT_DELETED)
    event = event_to_resend(waiting, alive, deletion)
    assert isinstance(event, DeletionRequested)
    assert event.generation == 2
    assert unfinished(alive, None, erasure()) == ()
    certain = erasure(certain_at=WHEN)
    (waiting,) = unfinished(alive, None, certain)
    event = event_to_resend(waiting, alive, None, certain)
    assert isinstance(event, DeletionRequested)
    assert event.generation == 2
    gone = ImageRecord(image_id=IMAGE, owner="anna", generation=2, deleted=True, state=ImageState.DELETED)
    assert unfinished(gone, deletion) == ()
    assert unfinished(gone, None, erasure(certain_at=WHEN, erased_at=LATER)) == ()


def test_missing_objects_are_reported_by_stage() -> None:
    """The sanitizer makes a missing master, the resizer a missing rendition; no other object is checked."""
    record = record_of(*Facts(IMAGE).all(), state=ImageState.COMPLETED)
    assert record.master is not None
    (thumbnail,) = record.renditions
    there = {record.master.key, thumbnail.object.key}
    assert lost(record, there) == {}
    assert lost(record, there - {thumbnail.object.key}) == {"resizer": (thumbnail.object,)}
    assert lost(record, set()) == {"sanitizer": (record.master,), "resizer": (thumbnail.object,)}
    assert lost(record.model_copy(update={"state": ImageState.PROCESSING}), set()) == {}


def test_a_fetched_image_is_sanitized_again_from_its_original() -> None:
    """The record names the original, so that nothing is fetched twice."""
    record = record_of(Facts(IMAGE).sanitized(source_url=URL), state=ImageState.COMPLETED)
    event = event_to_resend(Waiting("sanitizer", Reason.OBJECT_MISSING, 0), record, receipt(ReceiptKind.FETCH))
    assert isinstance(event, ImageFetched)
    assert (event.original, event.url) == (record.original, URL)


def test_a_rerun_is_resent_with_its_run() -> None:
    """An object of a rerun is made again by an event of the same run, hence under the same key."""
    record = record_of(*Facts(IMAGE).all(), state=ImageState.COMPLETED)
    again = record.stages["resizer"].model_copy(update={"run": 7})
    record = record.model_copy(update={"stages": {**record.stages, "resizer": again}})
    event = event_to_resend(Waiting("resizer", Reason.OBJECT_MISSING, 0), record, None)
    assert isinstance(event, ImageSanitized)
    assert event.run == 7


states = st.sampled_from(ENDED)
records = st.builds(
    lambda generation, stages, state, more, deleted: record_of(
        Facts(IMAGE).sanitized(),
        generation=generation,
        required=("sanitizer", *more),
        deleted=deleted,
        state=ImageState.DELETED if deleted else state,
        stages={name: StageRecord(state=found) for name, found in stages.items()},
    ),
    generation=st.integers(1, 3),
    stages=st.dictionaries(st.sampled_from(("fetcher", "sanitizer", *ANALYSIS_STAGES)), states),
    state=st.sampled_from(list(ImageState)),
    more=st.sets(st.sampled_from((*ANALYSIS_STAGES, "not-one-of-ours"))).map(sorted),
    deleted=st.booleans(),
)
receipts = st.builds(
    receipt, st.sampled_from([ReceiptKind.UPLOAD, ReceiptKind.FETCH, ReceiptKind.DELETE]), st.integers(1, 3)
)
erasures = st.builds(
    lambda certain, erased: erasure(
        certain_at=WHEN if certain else None, erased_at=LATER if erased and certain else None
    ),
    certain=st.booleans(),
    erased=st.booleans(),
)


@given(record=records, accepted=st.none() | receipts, gone=st.none() | erasures)
def test_only_unfinished_images_are_resent(record: ImageRecord, accepted: Receipt | None, gone: Erasure | None) -> None:
    """No ended image or stage gets an event; a resent event keeps image, owner and id."""
    newer = accepted is not None and accepted.generation > record.generation
    deletion = gone is not None or (accepted is not None and accepted.kind is ReceiptKind.DELETE)
    for waiting in unfinished(record, accepted, gone):
        if waiting.reason is Reason.NOT_DELETED:
            assert deletion or record.state is ImageState.DELETED
        else:
            assert newer or record.state is ImageState.PROCESSING
        if waiting.reason is Reason.STAGE_MISSING:
            assert record.stages.get(waiting.agent) is None or waiting.agent == "fetcher"
        event = event_to_resend(waiting, record, accepted, gone)
        if event is None:
            continue
        again = event_to_resend(waiting, record, accepted, gone)
        assert again is not None
        assert (event.id, event.image_id, event.owner) == (again.id, record.image_id, "anna")
        assert isinstance(event, DeletionRequested) == (waiting.agent == "indexer")
        if not isinstance(event, DeletionRequested):
            newest = max(record.generation, accepted.generation if accepted is not None else 0)
            assert event.generation == newest
    if record.state not in (ImageState.PROCESSING, ImageState.DELETED) and not newer and not deletion:
        assert unfinished(record, accepted, gone) == ()


def test_lost_compares_only_with_the_given_keys() -> None:
    """The caller decides which keys exist: an object elsewhere counts if it is listed."""
    elsewhere = Rendition(name="large", object=ref("d", "x/d"), width=1, height=1, aspect_ratio=1, format="webp")
    record = record_of(*Facts(IMAGE).all(), state=ImageState.COMPLETED, renditions=(elsewhere,))
    assert record.master is not None
    assert lost(record, {record.master.key, "x/d"}) == {}
