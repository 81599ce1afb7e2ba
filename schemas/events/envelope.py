"""The envelope: CloudEvents 1.0 in Kafka binary mode (ce_* headers, JSON body), to bytes and back.

Also read: structured mode, upper-case ids and hashes (they become lower-case), and a byte order mark before the body.
Spec: CloudEvents 1.0.2, Kafka protocol binding section 3.2.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, TypeVar

from pydantic import Field, JsonValue, ValidationError
from pydantic_core import from_json

from schemas.events.structured_mode import SPEC_VERSION, is_structured, unpack, without_bom
from schemas.values import DEFAULT_OWNER, ID_PATTERN, OWNER_PATTERN, LowerCase, Profile, Value, job_id_of

CONTENT_TYPE = "application/json"
# Namespace of all event ids: uuid5(NAMESPACE, "image|generation|stage|parameters").
NAMESPACE = uuid.UUID("6d1b3d9e-6f2c-5d53-9a9b-1c5a3fd1e0aa")

Headers = tuple[tuple[str, bytes], ...]


def now() -> str:
    """Return the current time as RFC 3339 text in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class NotAnEvent(ValueError):
    """A record is not a known event. `unknown`: its type is foreign; else its body is invalid."""

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown


class Event(Value):
    """Fields of every event: image, owner, run, required stages."""

    type: ClassVar[str]
    stage: ClassVar[str] = ""

    image_id: LowerCase = Field(pattern=ID_PATTERN, description="UUIDv7 as text; the Kafka key")
    owner: str = Field(default=DEFAULT_OWNER, pattern=OWNER_PATTERN, description="the tenant")
    generation: int = Field(default=1, ge=1, description="fencing token: events of a lower generation are dropped")
    run: int = Field(
        default=0,
        ge=0,
        description="rerun of one stage: its request time, unix milliseconds; 0 for the first run",
    )
    profile: Profile = Field(default_factory=Profile)
    occurred_at: str = Field(default_factory=now, description="RFC 3339, UTC")

    @property
    def job_id(self) -> str:
        """The id of this run of this image."""
        return job_id_of(self.image_id, self.generation)

    def key(self) -> bytes:
        """Return the Kafka key."""
        return self.image_id.encode()

    def producing_stage(self) -> str:
        """Return the stage whose work this event reports; part of the event's id."""
        return self.stage

    def identity(self) -> str:
        """Return what distinguishes this event from others of its stage and generation, '' if there is one only."""
        return ""

    @property
    def id(self) -> str:
        """Return the deterministic ce_id: equal work has an equal id, however often it is done."""
        parts = (self.image_id, str(self.generation), self.type, self.producing_stage(), self.identity())
        rerun = (f"run {self.run}",) if self.run else ()  # ids of first runs never contained a run
        return str(uuid.uuid5(NAMESPACE, "|".join((*parts, *rerun))))

    def body(self) -> bytes:
        """Return the JSON body."""
        return self.model_dump_json(exclude_none=True).encode()

    def headers(self, *, source: str, traceparent: str | None = None) -> Headers:
        """Return the CloudEvents headers of Kafka binary mode."""
        headers = [
            ("ce_specversion", SPEC_VERSION),
            ("ce_id", self.id),
            ("ce_type", self.type),
            ("ce_source", source),
            ("ce_subject", self.image_id),
            ("ce_time", self.occurred_at),
            ("content-type", CONTENT_TYPE),
        ]
        if traceparent:
            headers.append(("traceparent", traceparent))
        return tuple((name, value.encode()) for name, value in headers)


@dataclass(frozen=True, slots=True)
class Record:
    """One undecoded message of a log."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int = 0

    def header(self, name: str) -> str | None:
        """Return the last header with that name as text, None if absent."""
        for found, value in reversed(self.headers):
            if found == name:
                return value.decode("utf-8", "replace") if value is not None else None
        return None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message to produce; topic is the logical name, without the prefix."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default=())


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parameters_hash(parameters: Mapping[str, JsonValue]) -> str:
    """Return 16 hex digits that identify a set of parameters."""
    canonical = _CANONICAL.encode(parameters)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


E = TypeVar("E", bound=Event)


def decode(record: Record, accepted: Iterable[type[E]]) -> E:
    """Return the event of a record. Raises NotAnEvent for any other bytes."""
    wanted, body = _content(record)
    if wanted is None:
        raise NotAnEvent("the message has no ce_type header")
    for kind in accepted:
        if kind.type == wanted:
            break
    else:
        raise NotAnEvent(f"no reader here for events of type {wanted[:200]!r}", unknown=True)
    if not body:
        raise NotAnEvent("the message has no body")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise NotAnEvent(_sentence(error)) from error


def target_of(record: Record) -> Event | None:
    """Return the common fields of a record that is no valid event; None unless it names an image and its owner.

    The body must be JSON: of a truncated one the owner is unknown, and the image would be recorded as another's.
    """
    try:
        body = from_json(_content(record)[1] or b"")
    except ValueError:  # NotAnEvent too
        return None
    if not isinstance(body, dict):
        return None
    known = {name: body[name] for name in ("image_id", "owner", "generation") if name in body}
    for image_id in (body.get("image_id"), subject_of(record)):
        with suppress(ValidationError):
            return Event.model_validate(known | {"image_id": image_id})
    return None


def subject_of(record: Record) -> str | None:
    """Return the subject a record states, the image id of an event, lower-case; None without one."""
    subject = record.header("ce_subject")
    if subject is None and record.value and is_structured(record.header("content-type")):
        with suppress(ValueError):
            subject = unpack(record.value).subject
    return subject.lower() if subject is not None else None


def _content(record: Record) -> tuple[str | None, bytes | None]:
    """Return the event type and the JSON body of a record. Raises NotAnEvent for an invalid structured event."""
    if not record.value or not is_structured(record.header("content-type")):
        return record.header("ce_type"), without_bom(record.value) if record.value else None
    try:
        found = unpack(record.value)
    except ValidationError as error:
        raise NotAnEvent(f"structured event: {_sentence(error)}") from error
    except ValueError as error:
        raise NotAnEvent(f"structured event: {error}") from error
    return found.type, found.data


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "body"
    return f"{place}: {first['msg']}"
