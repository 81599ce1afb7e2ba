"""Results of jobs, and waiting for them with `Prefer: wait` (RFC 7240)."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import http_sf
from fastapi import Request
from pydantic import ValidationError

from gateway.http.problems import Problem
from gateway.images.lookup import Job, Lookup
from gateway.images.views import job_result
from gateway.settings import GatewaySettings
from schemas.http.jobs import JobResult
from schemas.stored.results import ReadText
from schemas.values import ImageState, Owner, StageState
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.object_store.keys import is_below, results_prefix
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.object_store.results import StoredResult
from streams.read_model.records import ImageRecord

log = logging.getLogger(__name__)

APPLIED = "Preference-Applied"
_MAX_RESULT_BYTES = 32_000_000  # a stored OCR result; a page of dense text has about 0.3 MB
_FIRST_POLL_S, _MAX_POLL_S, _BACKOFF = 0.1, 1.0, 1.3

PREFER_PARAMETER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": (
        "`wait=10`: 200 with the result itself if the job ends within 10 s, else 202. `respond-async`: 202 "
        "immediately, as without the header. `Preference-Applied` names the applied preference (RFC 7240)."
    ),
    "schema": {"type": "string"},
    "example": "wait=10",
}
"""OpenAPI description of the header."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences of a request."""

    wait_s: int | None = None
    respond_async: bool = False


def read_preferences(request: Request) -> Preferences:
    """Parse the Prefer header. Malformed preferences are ignored, as RFC 7240 allows."""
    try:
        found = http_sf.parse(", ".join(request.headers.getlist("prefer")).encode("latin-1"), tltype="dictionary")
    except ValueError:
        return Preferences()
    given = (
        {name: item[0] for name, item in found.items() if isinstance(item, tuple)} if isinstance(found, dict) else {}
    )
    wait = given.get("wait")
    seconds = wait if isinstance(wait, int) and not isinstance(wait, bool) and wait >= 0 else None
    return Preferences(seconds, given.get("respond-async") is True)


@dataclass(frozen=True, slots=True)
class Results:
    """Results of jobs. Methods raise Problem, DependencyUnavailable or TimeoutError."""

    settings: GatewaySettings
    files: FileStore
    lookup: Lookup

    async def of(self, job: Job, base: str) -> JobResult:
        """Return the result of a job. Raises Problem (409) until it has ended."""
        if job.record is None or job.state is ImageState.PROCESSING:
            raise self.lookup.not_finished("The job has not ended yet; see its status.")
        return job_result(job, job.record, await self.text_of(job.record), base)

    async def within(self, seconds: float, job_id: str, owner: Owner, base: str) -> JobResult | None:
        """Return the result of a job if it ends within `seconds`; None also while a dependency is unavailable."""
        deadline, pause = time.monotonic() + seconds, _FIRST_POLL_S
        try:
            while (job := await self.lookup.job(job_id, owner)).state is ImageState.PROCESSING:
                if time.monotonic() + pause > deadline:
                    return None
                await asyncio.sleep(pause)
                pause = min(pause * _BACKOFF, _MAX_POLL_S)
            return await self.of(job, base)
        except (Problem, DependencyUnavailable, TimeoutError) as error:  # the image is accepted anyway
            log.info("waiting for a result failed", extra={"job_id": job_id, "error": repr(error)})
            return None

    async def text_of(self, record: ImageRecord) -> ReadText | None:
        """Return the stored text of an image, None if it was not read, or is not stored any more."""
        stage = record.stages.get("ocr")
        if stage is None or stage.state is not StageState.DONE or stage.result is None:
            return None
        key = stage.result.key
        if not is_below(results_prefix(record.owner), key):  # a record written before events were checked
            log.warning("stored text is not a result of the owner", extra={"image_id": record.image_id})
            return None
        try:
            raw = await bounded(self.files.get(key, limit=_MAX_RESULT_BYTES), self.settings.storage_timeout_s)
            return ReadText.model_validate(StoredResult.model_validate_json(raw).result)
        except ObjectMissing:
            log.warning("stored text is missing", extra={"image_id": record.image_id, "key": key})
        except ValidationError as error:
            log.warning("stored text is invalid", extra={"key": key, "error": str(error)[:300]})
        return None
