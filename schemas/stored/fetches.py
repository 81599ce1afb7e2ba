"""What a source answered for a URL of an owner, stored as `fetched/{owner}/{digest}.json`."""

from __future__ import annotations

from pydantic import Field

from schemas.values import ErrorCode, ObjectRef, Value


class FetchRecord(Value):
    """The last answer for a URL: an original, a refusal, or another URL from which the fetch continues."""

    url: str
    final_url: str = Field(description="after redirects")
    hops: int = Field(default=0, ge=0, description="redirects followed to the final URL")
    checked_at: float = Field(description="unix seconds")
    original: ObjectRef | None = None
    etag: str | None = Field(default=None, description="as the source sent it, for a conditional request")
    last_modified: str | None = Field(default=None, description="as the source sent it")
    code: ErrorCode | None = Field(default=None, description="why it was refused")
    message: str = ""
