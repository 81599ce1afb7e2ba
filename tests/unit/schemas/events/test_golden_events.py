"""Published events stay readable, and encoding round-trips.

`tests/data/events/v1` contains two events of each published type, written once and never changed: one with all fields,
one (`.smallest`) with only the required ones. A new type or version gets new files; so do fields added later
(`.contents`).
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from darkroom.generate.docs import event_schema, event_types
from schemas.events.envelope import Event, NotAnEvent, Record, decode, parameters_hash
from schemas.events.facts import ImageEmbedded, StageCompleted, StageSkipped, TextRead
from schemas.events.intake import FetchRequested, ImageUploaded
from schemas.values import ErrorCode, ObjectRef, Profile, StageReport, Vector, new_image_id

FOLDER = Path(__file__).parents[3] / "data" / "events"
FILES = sorted(FOLDER.glob("v*/*.json"))
KINDS = event_types()


def golden(path: Path) -> tuple[Record, dict[str, Any]]:
    golden_event = json.loads(path.read_text())
    headers = tuple((name, value.encode()) for name, value in golden_event["headers"].items())
    body = json.dumps(golden_event["body"]).encode()
    return Record("t", 0, 0, golden_event["key"].encode(), body, headers), golden_event


def contains(old: object, new: object) -> bool:
    """Return whether every value of the old event is in the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(name in new and contains(value, new[name]) for name, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(contains, old, new))
    return old == new


def test_every_published_type_has_its_golden_events() -> None:
    """Each type of the topic table has a full and a smallest event in the folder of its version."""
    wanted = set()
    for kind in KINDS:
        _, _, verb, version = kind.type.split(".")
        wanted |= {f"{version}/{verb}.json", f"{version}/{verb}.smallest.json"}
    assert {str(path.relative_to(FOLDER)) for path in FILES} >= wanted


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_events_stay_readable(path: Path) -> None:
    """An event of an older writer is readable, loses nothing, and keeps its id and key."""
    record, golden_event = golden(path)
    event = decode(record, KINDS)
    assert contains(golden_event["body"], json.loads(event.body()))
    assert event.id == golden_event["headers"]["ce_id"]
    assert event.key() == record.key
    assert event.type == golden_event["headers"]["ce_type"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_events_match_the_published_schema(path: Path) -> None:
    """The published JSON Schema accepts what the code accepts, and requires every field that the code requires."""
    _, golden_event = golden(path)
    kind = next(kind for kind in KINDS if kind.type == golden_event["headers"]["ce_type"])
    validator = jsonschema.Draft202012Validator(event_schema(kind))
    validator.validate(golden_event["body"])
    if path.stem.endswith(".smallest"):
        for name in golden_event["body"]:
            with pytest.raises(jsonschema.ValidationError):
                validator.validate({k: v for k, v in golden_event["body"].items() if k != name})


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_events_of_a_newer_writer_are_read(path: Path) -> None:
    """Unknown fields at any depth are ignored, and the event keeps its id."""

    def add(value: Any) -> Any:
        if isinstance(value, dict):
            return {**{name: add(part) for name, part in value.items()}, "from_the_future": [1]}
        return [add(part) for part in value] if isinstance(value, list) else value

    record, golden_event = golden(path)
    plain = {"occurred_at": "2026-01-02T03:04:05Z", **golden_event["body"]}  # else the time of reading
    free = {"context", "profile", "stages"}  # fields in which any name is a value
    if golden_event["headers"]["ce_type"] == StageCompleted.type:
        free.add("result")
    newer = {n: v if n in free else add(v) for n, v in plain.items()} | {"from_the_future": {}}
    older, younger = (
        decode(Record("t", 0, 0, record.key, json.dumps(body).encode(), record.headers), KINDS)
        for body in (plain, newer)
    )
    assert younger == older
    assert younger.id == older.id


@pytest.mark.parametrize("path", [p for p in FILES if not p.stem.endswith(".smallest")], ids=lambda p: p.stem)
def test_headers_are_unchanged(path: Path) -> None:
    """Headers are byte-identical to the golden ones."""
    record, golden_event = golden(path)
    event = decode(record, KINDS)
    headers = golden_event["headers"]
    written = event.headers(source=headers["ce_source"], traceparent=headers["traceparent"])
    assert {name: value.decode() for name, value in written} == headers
    assert "traceparent" not in dict(event.headers(source="x"))


# --- properties

IMAGE_IDS = st.uuids().map(str)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
OWNERS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
OBJECTS = st.builds(
    ObjectRef,
    bucket=st.text(),
    key=st.text(),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    size=st.integers(0, 2**60),
)
COMMON = {
    "image_id": IMAGE_IDS,
    "owner": OWNERS,
    "generation": st.integers(1, 2**31),
    "profile": st.builds(
        Profile,
        stages=st.lists(st.text(), max_size=3).map(tuple),
        parameters=st.dictionaries(st.text(), st.dictionaries(st.text(), JSON, max_size=3), max_size=3),
    ),
    "occurred_at": st.text(max_size=30),
}
SAID = {
    "filename": st.none() | st.text(max_size=255),
    "context": st.dictionaries(st.text(), JSON, max_size=4),
    "submitted_at": st.none() | st.text(max_size=30),
}
REPORTS = st.builds(
    StageReport,
    stage=st.text(),
    version=st.text(),
    attempts=st.integers(1, 99),
    duration_ms=st.integers(0, 10**9),
    reused=st.booleans(),
)
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(ImageUploaded, **COMMON, **SAID, original=OBJECTS),
    st.builds(FetchRequested, **COMMON, **SAID, url=st.text(max_size=4096)),
    st.builds(
        TextRead,
        **COMMON,
        report=REPORTS,
        content=st.text(),
        span_count=st.integers(0, 9),
        mean_confidence=st.floats(0, 1),
        result=OBJECTS,
    ),
    st.builds(StageSkipped, **COMMON, report=REPORTS, reason=st.sampled_from(ErrorCode), message=st.text()),
)


@given(EVENTS, st.text(st.characters(codec="utf-8")))
def test_an_event_round_trips(event: Event, source: str) -> None:
    """Headers and body decode to the event that made them, whatever its text or metadata."""
    record = Record("t", 0, 0, event.key(), event.body(), event.headers(source=source))
    again = decode(record, KINDS)
    assert again == event
    assert again.id == event.id == record.header("ce_id")
    assert again.key() == event.key()


@given(EVENTS)
def test_an_id_depends_only_on_the_work(event: Event) -> None:
    """Equal work has an equal id at any time; another image, generation or type has another id."""
    assert uuid.UUID(event.id).version == 5
    assert event.model_copy(update={"occurred_at": "later", "owner": "other"}).id == event.id
    assert event.model_copy(update={"generation": event.generation + 1}).id != event.id
    assert event.model_copy(update={"image_id": str(new_image_id())}).id != event.id


def test_stages_do_not_share_ids() -> None:
    """Two stages' facts of the same type about one image have different ids."""
    image_id = new_image_id()
    facts = [
        StageSkipped(
            image_id=image_id,
            report=StageReport(stage=stage, version="1", attempts=1, duration_ms=0),
            reason=ErrorCode.MODEL_UNAVAILABLE,
            message="",
        )
        for stage in ("embedder", "detector")
    ]
    assert facts[0].id != facts[1].id


@given(FLOATS)
def test_a_vector_round_trips(values: list[float]) -> None:
    """A vector's float32 values are bit-identical after JSON."""
    event = ImageEmbedded.model_validate(
        {
            "image_id": new_image_id(),
            "report": {"stage": "embedder", "version": "1", "attempts": 1, "duration_ms": 0},
            "vector": Vector.of(values),
            "model": {"name": "m", "sha256": "0", "backend": "torch"},
        }
    )
    again = decode(Record("t", 0, 0, None, event.body(), event.headers(source="x")), KINDS)
    assert isinstance(again, ImageEmbedded)
    assert again.vector.values() == values


HEADERS = st.lists(
    st.tuples(st.sampled_from(["ce_type", "ce_id", "traceparent"]) | st.text(), st.binary() | st.none()), max_size=5
)
BODIES = st.none() | st.binary() | JSON.map(lambda value: json.dumps(value).encode())


@given(st.sampled_from([*(kind.type for kind in KINDS), None, "other"]), HEADERS, BODIES)
@example("darkroom.image.uploaded.v1", [], b"[" * 100_000)
@example("darkroom.image.uploaded.v1", [], b'{"image_id": "\\ud800"}')
@example("darkroom.image.uploaded.v1", [("ce_type", b"\xff\xfe")], b"{}")
@example("darkroom.image.uploaded.v1", [("ce_type", None)], b"{}")
def test_any_other_bytes_are_not_an_event(
    kind: str | None, more: list[tuple[str, bytes | None]], body: bytes | None
) -> None:
    """Any headers and body decode to an event or raise NotAnEvent, and nothing else."""
    headers = (*([("ce_type", kind.encode())] if kind else []), *more)
    try:
        event = decode(Record("t", 0, 0, None, body, headers), KINDS)  # type: ignore[arg-type] # Kafka allows null
    except NotAnEvent as refusal:
        assert str(refusal)
    else:
        assert event.id
        assert event.body()


@pytest.mark.parametrize(
    ("headers", "body", "unknown", "says"),
    [
        ((), b"{}", False, "ce_type"),
        ((("ce_type", b"com.example.v1"),), b"{}", True, "com.example.v1"),
        ((("ce_type", b"darkroom.image.uploaded.v1"),), None, False, "no body"),
        ((("ce_type", b"darkroom.image.uploaded.v1"),), b"", False, "no body"),
        ((("ce_type", b"darkroom.image.uploaded.v1"),), b"{", False, "body"),
        ((("ce_type", b"darkroom.image.uploaded.v1"),), b"{}", False, "image_id"),
    ],
)
def test_the_error_names_the_cause(
    headers: tuple[tuple[str, bytes], ...], body: bytes | None, unknown: bool, says: str
) -> None:
    """Invalid and foreign events are distinguished, and the first invalid field is named."""
    with pytest.raises(NotAnEvent, match=says) as caught:
        decode(Record("t", 0, 0, None, body, headers), KINDS)
    assert caught.value.unknown is unknown


def test_a_url_without_a_host_has_a_key() -> None:
    """A fetch is keyed by source host; with an unreadable URL, by image."""
    image_id = new_image_id()
    for url, key in (
        ("https://A.example:8443/x", "a.example"),
        ("http://[", image_id),
        ("x", image_id),
        ("", image_id),
    ):
        assert FetchRequested(image_id=image_id, url=url).key() == key.encode()


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_parameters_hash_by_value(parameters: dict[str, Any]) -> None:
    """The order of parameters does not change their hash; another value does."""
    turned = dict(reversed(list(parameters.items())))
    assert parameters_hash(turned) == parameters_hash(parameters)
    assert parameters_hash({**parameters, "more": 1}) != parameters_hash({**parameters, "more": 2})
