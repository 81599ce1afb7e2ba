"""Duplicate and malformed events for every agent on a real Kafka: no result changes, no worker stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom.local.demo import draw_turned
from infra.local.kafka import LocalKafka
from schemas.events.envelope import Outgoing
from schemas.events.facts import ImageSanitized
from schemas.events.intake import ImageUploaded
from schemas.http.jobs import JobResult
from schemas.values import ImageState, Profile, new_image_id
from streams import topics
from streams.topics import AGENTS, MAX_MESSAGE_BYTES, Topic
from tests.support.deployment import Deployment, deployed

pytestmark = [pytest.mark.lengthy, pytest.mark.timeout(600)]  # the first test waits for the models

WORK = (topics.UPLOADED, topics.FETCH_REQUESTED, topics.FETCHED, topics.SANITIZED, topics.FACTS)


@pytest.fixture(scope="module")
def deployment(
    kafka: LocalKafka, models_dir: Path, models_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Return all agents running."""
    folder = tmp_path_factory.mktemp("repeats")
    quick = {"DARKROOM_OCR__POLICY": "tesseract"}  # EasyOCR loads slowly and adds nothing here
    settings = {**quick, "DARKROOM_MODELS__DIR": str(models_dir), "DARKROOM_MODELS__CACHE": str(models_cache)}
    with deployed(kafka.bootstrap, folder, settings=settings) as deployment:
        deployment.start("core", *(agent for agent in AGENTS if agent != "indexer"))
        deployment.until_ready(*AGENTS)
        yield deployment


def test_a_duplicate_of_every_event_changes_nothing(
    deployment: Deployment, images: dict[str, bytes], calm: dict[str, dict[str, str]]
) -> None:
    """With every event of every topic produced at least twice, each image ends once, with the same bytes and result."""
    events = {name: deployment.uploaded(data, profile=Profile()) for name, data in images.items()}
    ids = [event.image_id for event in events.values()]
    deployment.publish(topics.UPLOADED, *events.values(), *events.values())
    deployment.until_ended(ids)
    deployment.until_idle(*AGENTS)
    before = {image_id: _lasting(deployment.result(image_id)) for image_id in ids}
    for topic in (topics.UPLOADED, topics.SANITIZED, topics.FACTS):
        records = deployment.records(topic)
        assert {record.header("ce_subject") for record in records} == set(ids)
        deployment.produce(Outgoing(topic.name, record.key, record.value, record.headers) for record in records)
        deployment.until_idle(*AGENTS)
    deployment.check_ended_once(ids)
    assert {image_id: _lasting(deployment.result(image_id)) for image_id in ids} == before
    assert {name: deployment.objects(event.image_id) for name, event in events.items()} == calm
    assert not [letter for agent in AGENTS for letter in deployment.records(topics.dead_topic(agent))]


def test_equal_work_emits_equal_events(deployment: Deployment) -> None:
    """Repeated work of one stage on one image has one event id."""
    for topic in (topics.SANITIZED, topics.FACTS):
        ids_by_work: dict[tuple[str | None, ...], set[str | None]] = {}
        for record in deployment.records(topic):
            stage = str(record.header("ce_source")), str(record.header("ce_type"))
            ids_by_work.setdefault((record.header("ce_subject"), *stage), set()).add(record.header("ce_id"))
        assert ids_by_work
        assert {len(ids) for ids in ids_by_work.values()} == {1}


def test_malformed_events_on_every_topic_are_dead_lettered(deployment: Deployment) -> None:
    """A malformed event becomes a dead letter of each reader, byte for byte with its code; the next image completes."""
    known = {agent: len(deployment.records(topics.dead_topic(agent))) for agent in AGENTS}
    for topic in WORK:
        deployment.produce(Outgoing(topic.name, key, value, headers) for key, value, headers, _ in _poison(topic))
    good = deployment.uploaded(draw_turned(), profile=Profile())
    deployment.publish(topics.UPLOADED, good)
    deployment.until_ended([good.image_id])
    deployment.until_idle(*AGENTS)
    for agent in AGENTS:
        letters = deployment.records(topics.dead_topic(agent))[known[agent] :]
        found = Counter((r.header("dlq.original.topic"), r.key, r.value, r.header("dlq.error.code")) for r in letters)
        expected = Counter(
            (topic.name, key, value, code)
            for topic in WORK
            if agent in topic.readers
            for key, value, _, code in _poison(topic)
        )
        assert found == expected, agent
        for letter in letters:
            kept = [pair for pair in letter.headers if not pair[0].startswith("dlq.")]
            assert kept in [list(h) for topic in WORK for _, v, h, _ in _poison(topic) if v == letter.value]
    assert deployment.result(good.image_id).status is ImageState.COMPLETED


def _poison(topic: Topic) -> list[tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...], str]]:
    """Return malformed messages, one per kind: key, value, headers and the expected error code."""
    kind = topic.events[0]
    right = (("ce_type", kind.type.encode()), ("ce_id", b"poison"), ("content-type", b"application/json"))
    key = b"00000000-0000-7000-8000-000000000000"
    huge = b'{"image_id": "' + b"x" * (MAX_MESSAGE_BYTES - 2000) + b'"}'
    return [
        (key, b"\x00\xff\xfe garbage \x80", (), "malformed-event"),
        (key, b"{}", (("ce_type", b"somebody.elses.v1"),), "unknown-event"),
        (key, b'{"image_id": "00000000-0000-7000-8', right, "malformed-event"),
        (key, b"[1, 2, 3]", right, "malformed-event"),
        (key, None, right, "malformed-event"),
        (None, b'{"image_id": 7}', (*right, ("ce_subject", b"\xff\xfe")), "malformed-event"),
        (key, huge, right, "malformed-event"),
    ]


def test_an_event_with_a_wrong_object_reference_fails_its_image(deployment: Deployment) -> None:
    """A valid event whose original has another hash, or is missing, ends its image failed."""
    right = deployment.uploaded(draw_turned() + b"another")
    changed = right.model_copy(update={"original": right.original.model_copy(update={"sha256": "0" * 64})})
    absent = right.original.model_copy(update={"key": "originals/default/00/none"})
    gone = ImageUploaded(image_id=new_image_id(), original=absent, profile=right.profile)
    deployment.publish(topics.UPLOADED, changed, gone)
    deployment.until_ended([changed.image_id, gone.image_id], ImageState.FAILED)
    codes = {image: str(deployment.result(image).error) for image in (changed.image_id, gone.image_id)}
    assert "object-changed" in codes[changed.image_id]
    assert "gone" in codes[gone.image_id]


def test_an_event_that_cannot_be_processed_fails_the_image_it_names(deployment: Deployment) -> None:
    """A forged reference, a known hash without its bytes, and a body without an original: each ends its image."""
    done = deployment.uploaded(draw_turned() + b"known")
    deployment.publish(topics.UPLOADED, done)
    deployment.until_ended([done.image_id])
    forged, unheld = (
        ImageUploaded(image_id=new_image_id(), original=done.original.model_copy(update={"key": key}))
        for key in ("keys/0123456789abcdef.json", "originals/default/00/absent")
    )
    malformed = new_image_id()
    body, headers = b'{"image_id": "%s"}' % malformed.upper().encode(), (("ce_type", ImageUploaded.type.encode()),)
    deployment.publish(topics.UPLOADED, forged, unheld)
    deployment.produce([Outgoing(topics.UPLOADED.name, malformed.encode(), body, headers)])
    expected = {
        forged.image_id: "reference-not-allowed", unheld.image_id: "gone", malformed: "malformed-event",
    }  # fmt: skip
    deployment.until_ended(list(expected), ImageState.FAILED)
    for image_id, code in expected.items():
        error = deployment.result(image_id).error
        assert error is not None
        assert error.code == code


def _lasting(result: JobResult) -> JobResult:
    """Return a result without the fields of a single run: attempts, duration, reuse."""
    stages = {
        name: stage.model_copy(update={"attempts": None, "duration_ms": None, "reused": None})
        for name, stage in result.stages.items()
    }
    return result.model_copy(update={"stages": stages})


def test_malformed_events_end_no_worker(deployment: Deployment) -> None:
    """After all malformed events, every worker process still runs."""
    deployment.check_alive()
    assert all(child.exit_code is None for child in deployment.children.values())
    assert ImageSanitized.type in {record.header("ce_type") for record in deployment.records(topics.SANITIZED)}
