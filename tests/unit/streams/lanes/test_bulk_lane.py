"""Events of the bulk lane and their targets."""

from __future__ import annotations

import uuid

import pytest

from schemas.events.envelope import Event, Outgoing, Record
from schemas.events.intake import FetchRequested, ImageFetched, ImageUploaded
from schemas.values import ErrorCode, new_image_id
from streams import topics
from streams.errors import Malformed
from streams.kafka.messages import in_bulk
from streams.lanes.admission_control import WHOLE, Slot
from streams.lanes.bulk_lane import read_bulk
from streams.topics import LANE_TARGET_HEADER, retry_topic
from tests.support.facts import Facts
from tests.support.stage_kit import SHA, message, uploaded


def record(found: Outgoing) -> Record:
    """Return a message as a record of the log."""
    return Record(found.topic, 0, 7, found.key, found.value, found.headers)


def sanitized() -> Event:
    """Return the work event of the analysis stages."""
    return Facts(new_image_id()).sanitized()


def test_an_event_is_forwarded_unchanged() -> None:
    """Key, value and headers are unchanged, and the target is in a header."""
    event = uploaded(owner="anna")
    found = read_bulk(record(in_bulk(message(event, odd="é"))))
    assert found.owner == "anna"
    assert found.slot == Slot(event.image_id, WHOLE)
    sent = message(event, odd="é")
    assert (found.message.topic, found.message.key, found.message.value) == (sent.topic, sent.key, sent.value)
    assert found.message.headers == (*sent.headers, (LANE_TARGET_HEADER, b"image.uploaded"))
    assert found.size > len(sent.value or b"")


@pytest.mark.parametrize(
    ("event", "target"),
    [
        (uploaded(), "image.uploaded"),
        (FetchRequested(image_id=new_image_id(), url="https://example.org/a.jpg"), "image.fetch-requested"),
    ],
)
def test_an_event_without_a_target_goes_to_the_topic_of_its_type(event: Event, target: str) -> None:
    """Other services need not name the target of an upload or fetch request."""
    found = read_bulk(record(message(event, topics.BULK.name)))
    assert found.message.topic == target
    assert found.message.headers[-1] == (LANE_TARGET_HEADER, target.encode())


@pytest.mark.parametrize(
    ("agent", "stage"), [("ocr", "ocr"), ("sanitizer", "sanitizer"), ("fetcher", WHOLE), ("indexer", WHOLE)]
)
def test_a_rerun_goes_to_one_agent_and_ends_with_its_fact(agent: str, stage: str) -> None:
    """A slot for a retry topic ends with the fact of that stage, or with the outcome if the agent emits none."""
    events: dict[str, Event] = {
        "sanitizer": uploaded(),
        "fetcher": FetchRequested(image_id=new_image_id(), url="https://example.org/a.jpg"),
    }
    event = events.get(agent, sanitized())
    found = read_bulk(record(in_bulk(message(event, retry_topic(agent)))))
    assert found.message.topic == retry_topic(agent)
    assert found.slot == Slot(event.image_id, stage)


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (message(uploaded(), "image.bulk", **{LANE_TARGET_HEADER: "image.facts"}), ErrorCode.UNKNOWN_EVENT),
        (message(uploaded(), "image.bulk", **{LANE_TARGET_HEADER: "ocr.retry"}), ErrorCode.UNKNOWN_EVENT),
        (message(uploaded(), "image.bulk", **{LANE_TARGET_HEADER: "ocr.dead"}), ErrorCode.UNKNOWN_EVENT),
        (message(uploaded(), "image.bulk", **{LANE_TARGET_HEADER: ""}), ErrorCode.UNKNOWN_EVENT),
        (message(sanitized(), "image.bulk"), ErrorCode.UNKNOWN_EVENT),
        (
            message(
                ImageFetched(image_id=str(uuid.uuid4()), original=uploaded().original, url="https://a.example/"),
                "image.bulk",
            ),
            ErrorCode.UNKNOWN_EVENT,
        ),
        (Outgoing("image.bulk", b"k", b"{}"), ErrorCode.MALFORMED_EVENT),
        (Outgoing("image.bulk", b"k", b"{}", (("ce_type", ImageUploaded.type.encode()),)), ErrorCode.MALFORMED_EVENT),
        (Outgoing("image.bulk", None, None, (("ce_type", ImageUploaded.type.encode()),)), ErrorCode.MALFORMED_EVENT),
        (Outgoing("image.bulk", b"k", SHA.encode(), (("ce_type", b"\xff"),)), ErrorCode.UNKNOWN_EVENT),
    ],
)
def test_an_event_without_an_allowed_target_is_refused(found: Outgoing, code: ErrorCode) -> None:
    """Unknown types, wrong targets and unreadable events raise Malformed with a code."""
    with pytest.raises(Malformed) as refused:
        read_bulk(record(found))
    assert refused.value.code is code
