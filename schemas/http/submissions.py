"""HTTP bodies of submission and deletion requests, and of their 202 answers."""

from __future__ import annotations

import json
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.stored.erasures import ErasureState, Removed
from schemas.values import DEFAULT_STAGES, REQUIRED_STAGES, ImageState, Lane, Profile, Value

BUCKET_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_URL_LENGTH = 4096  # characters
MAX_PARAMETERS_BYTES = 4096  # of the parameters of a profile, as JSON
# Simplified patterns for clients; the parsers of both check more and return precise errors.
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_URL_PATTERN = rf"^https?://{_HOST}(?:\.{_HOST})*(?::[1-9][0-9]{{0,3}})?(?:[/?#][!-~]*)?$"


StageName = Annotated[str, Field(pattern=f"^(?:{'|'.join(REQUIRED_STAGES)})$")]


class ProfileRequest(BaseModel):
    """Which stages an image passes, and parameters of single stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stages: tuple[StageName, ...] = Field(
        DEFAULT_STAGES,
        max_length=len(REQUIRED_STAGES),
        description="the others do not run; `sanitizer` always does",
        examples=[["resizer", "ocr"]],
    )
    parameters: dict[StageName, dict[str, JsonValue]] = Field(
        default_factory=dict,
        description="by stage, at most 4 KB; the stage rejects the image if it does not know one (docs/stages.md)",
        examples=[{"detector": {"confidence": 0.6}}],
        json_schema_extra={"additionalProperties": False},
    )

    @model_validator(mode="after")
    def _is_portable(self) -> Self:
        """Refuse what no event can carry: 1e999 and lone surrogates are parsed, but have no JSON representation."""
        try:
            size = len(json.dumps(self.parameters, ensure_ascii=False, allow_nan=False).encode())
        except (ValueError, RecursionError):
            raise ValueError("the parameters contain a number or character that JSON cannot represent") from None
        if size > MAX_PARAMETERS_BYTES:
            raise ValueError(f"the parameters are larger than the limit of {MAX_PARAMETERS_BYTES} bytes")
        return self

    def as_profile(self) -> Profile:
        """Return the profile of the image's events: each stage once, in pipeline order."""
        stages = tuple(name for name in REQUIRED_STAGES if name == "sanitizer" or name in self.stages)
        return Profile(stages=stages, parameters=self.parameters)


class FetchImage(BaseModel):
    """Request to fetch an image from a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        min_length=1,
        max_length=MAX_URL_LENGTH,
        examples=["https://example.org/cat.jpg"],
        json_schema_extra={"pattern": _URL_PATTERN},
    )
    bucket: str = Field("default", pattern=BUCKET_PATTERN)
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="returned unchanged, at most 16 KB")
    tags: tuple[Tag, ...] = Field((), max_length=MAX_TAGS, examples=[["cat", "black and white"]])
    category: Category | None = Field(None, examples=["animals"])
    lane: Lane = Field(Lane.INTERACTIVE, description="bulk: processed with spare capacity, after interactive images")
    profile: ProfileRequest = Field(default_factory=ProfileRequest)


class Submitted(Value):
    """The request is accepted: stored, and confirmed by Kafka."""

    job_id: str
    image_id: str
    status: ImageState = ImageState.PROCESSING
    lane: Lane = Field(Lane.INTERACTIVE, description="bulk without a request for it: too many interactive images")
    duplicate: bool = Field(False, description="the same bytes were uploaded before: this is that image")
    status_url: str
    result_url: str


class DeletionSubmitted(Submitted):
    """The deletion is accepted: confirmed by Kafka, the image hidden."""

    erasure_url: str = Field(description="report of the removed objects")


class ErasureView(Value):
    """Erasure report of a deleted image. Times are RFC 3339, UTC."""

    image_id: str
    state: ErasureState = Field(description="requested, erased, or finished: no late write is possible")
    requested_at: str
    erased_at: str | None = None
    finished_at: str | None = None
    removed: Removed
    remaining: int = Field(description="objects and receipts of the image currently in the store: 0 once erased")
    leaves_log_by: str = Field(description="when Kafka's retention removes the last event about it")
