"""CloudEvents structured mode: attributes and data in one JSON body. Darkroom reads it and writes binary mode.

Spec: CloudEvents 1.0.2, Kafka protocol binding section 3.3 and JSON event format section 3.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, JsonValue
from pydantic_core import to_json

STRUCTURED = "application/cloudevents+json"
SPEC_VERSION = "1.0"
_BOM = b"\xef\xbb\xbf"


class _Structured(BaseModel):
    specversion: Literal["1.0"]
    type: str
    subject: str | None = None
    data: JsonValue = None
    data_base64: str | None = None


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The parts of a structured event that its readers need; `data` is the body of the same event in binary mode."""

    type: str
    subject: str | None
    data: bytes


def is_structured(content_type: str | None) -> bool:
    """Return whether a message's content type says that its body contains the attributes."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() == STRUCTURED


def without_bom(body: bytes) -> bytes:
    """Return a body without the byte order mark that some encoders put before UTF-8."""
    return body.removeprefix(_BOM)


def unpack(body: bytes) -> Unpacked:
    """Return the parts of a structured event. Raises ValueError."""
    event = _Structured.model_validate_json(without_bom(body))
    if event.data_base64 is not None:
        return Unpacked(event.type, event.subject, base64.b64decode(event.data_base64, validate=True))
    if event.data is None:
        raise ValueError("the event has no data")
    return Unpacked(event.type, event.subject, to_json(event.data))
