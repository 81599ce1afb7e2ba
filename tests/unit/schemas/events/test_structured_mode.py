"""Events as other producers write them: structured mode, upper-case ids and hashes, and a byte order mark."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from schemas.events.envelope import NotAnEvent, Record, decode, subject_of
from schemas.events.intake import ImageUploaded

IMAGE, SHA = "0198c0de-7a11-7abc-8def-0123456789ab", "9f" * 32
BODY = {
    "image_id": IMAGE,
    "context": {"note": "GRÜN"},
    "original": {"bucket": "darkroom", "key": "originals/default/9f/x", "sha256": SHA, "size": 3},
    "occurred_at": "2026-01-01T00:00:00Z",
}
UPPER = BODY | {"image_id": IMAGE.upper(), "original": {**BODY["original"], "sha256": SHA.upper()}}  # type: ignore[dict-item]
EXPECTED = ImageUploaded.model_validate(BODY)
BOM = b"\xef\xbb\xbf"


def binary(body: bytes) -> Record:
    return Record("image.uploaded", 0, 0, IMAGE.encode(), body, (("ce_type", ImageUploaded.type.encode()),))


def structured(content_type: str = "application/cloudevents+json", bom: bytes = b"", **attributes: Any) -> Record:
    event = {
        "specversion": "1.0", "id": "1", "source": "shop", "type": ImageUploaded.type, "subject": IMAGE.upper(),
        "datacontenttype": "application/json", "data": BODY, **attributes,
    }  # fmt: skip
    kept = {name: value for name, value in event.items() if value is not None}
    body = bom + json.dumps(kept).encode()
    return Record("image.uploaded", 0, 0, IMAGE.encode(), body, (("content-type", content_type.encode()),))


@pytest.mark.parametrize(
    "record",
    [
        binary(json.dumps(UPPER).encode()),
        binary(BOM + json.dumps(BODY, ensure_ascii=False).encode()),
        structured(),
        structured(data=UPPER),
        structured("Application/CloudEvents+JSON; charset=utf-8", bom=BOM),
        structured(data=None, data_base64=base64.b64encode(json.dumps(BODY).encode()).decode()),
    ],
    ids=["upper-case", "byte order mark", "structured", "structured upper-case", "parameters and mark", "base64"],
)
def test_an_event_of_another_producer_is_the_same_event(record: Record) -> None:
    """However it is written, the event is equal, and so are its id, its key and its body."""
    event = decode(record, (ImageUploaded,))
    assert (event, event.id, event.key()) == (EXPECTED, EXPECTED.id, IMAGE.encode())
    assert event.body() == EXPECTED.body()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (structured(specversion="0.3"), "specversion"),
        (structured(type=None), "type"),
        (structured(type=7), "type"),
        (structured(data=None), "no data"),
        (structured(data=[1]), "body"),
        (structured(data=BODY | {"original": None}), "original"),
        (structured(data=None, data_base64="%"), "structured event"),
        (Record("t", 0, 0, None, b"[" * 5000, (("content-type", b"application/cloudevents+json"),)), "body"),
        (binary(BOM), "no body"),
    ],
)
def test_an_invalid_structured_event_is_no_event(record: Record, message: str) -> None:
    """The error names the attribute or field, and the type is not called unknown."""
    with pytest.raises(NotAnEvent, match=message) as raised:
        decode(record, (ImageUploaded,))
    assert not raised.value.unknown


def test_another_type_in_structured_mode_is_unknown() -> None:
    """A foreign type is recognised as in binary mode."""
    with pytest.raises(NotAnEvent) as raised:
        decode(structured(type="shop.order.v1"), (ImageUploaded,))
    assert raised.value.unknown


@pytest.mark.parametrize(
    ("record", "subject"),
    [
        (structured(), IMAGE),
        (structured(subject=None), None),
        (Record("t", 0, 0, None, b"x", (("content-type", b"application/cloudevents+json"),)), None),
        (Record("t", 0, 0, None, b"{}", (("ce_subject", IMAGE.upper().encode()),)), IMAGE),
        (binary(b"{}"), None),
    ],
)
def test_the_subject_is_read_in_both_modes(record: Record, subject: str | None) -> None:
    """The subject orders the events of an image and finds its dead letters, whichever mode its producer uses."""
    assert subject_of(record) == subject
