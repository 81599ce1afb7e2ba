"""Submission of a received image: duplicates, idempotency, lane and `Prefer: wait`, then the response."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from gateway.http.problems import unavailable
from gateway.http.request_context import base_url, traceparent_of
from gateway.http.spooling import SpooledFile
from gateway.images.lookup import Lookup
from gateway.images.results import APPLIED, Results, read_preferences
from gateway.settings import GatewaySettings
from gateway.uploads.acceptance import Acceptance
from gateway.uploads.duplicates import Duplicates
from gateway.uploads.idempotency import REPLAYED, Answer, Idempotency, Work
from gateway.uploads.lane_selection import Lanes
from gateway.uploads.submission_fields import Details, OnDuplicate
from schemas.http.jobs import JobResult
from schemas.http.problems import ProblemCode
from schemas.http.submissions import Submitted
from schemas.stored.receipts import Receipt
from schemas.values import ImageId, ImageState, Lane, Owner
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore
from streams.read_model.protocol import ReadModel

REFUSALS = (
    ProblemCode.INVALID_IDEMPOTENCY_KEY,
    ProblemCode.IDEMPOTENCY_KEY_IN_USE,
    ProblemCode.IDEMPOTENCY_KEY_REUSED,
    ProblemCode.INVALID_DIGEST,
    ProblemCode.DIGEST_MISMATCH,
    ProblemCode.RATE_LIMITED,
    ProblemCode.QUOTA_EXCEEDED,
    ProblemCode.DEPENDENCY_UNAVAILABLE,
)
"""Problem codes of every submission route."""

FORM_REFUSALS = (
    ProblemCode.MISSING_FILE,
    ProblemCode.EMPTY_FILE,
    ProblemCode.INVALID_METADATA,
    ProblemCode.INVALID_BUCKET,
    ProblemCode.INVALID_FIELD,
    ProblemCode.UNKNOWN_FIELD,
    ProblemCode.UPLOAD_TOO_SLOW,
    ProblemCode.FILE_TOO_LARGE,
    ProblemCode.UNSUPPORTED_FORMAT,
)
"""Further problem codes of routes that take a form."""


@dataclass(frozen=True, slots=True)
class Submission:
    """Accepts a received image, once per Idempotency-Key, and builds the response."""

    settings: GatewaySettings
    acceptance: Acceptance
    lanes: Lanes
    duplicates: Duplicates
    idempotency: Idempotency
    results: Results | None  # None: this process has no read model

    @staticmethod
    def of(
        settings: GatewaySettings,
        files: FileStore,
        read_model: ReadModel | None,
        acceptance: Acceptance,
        lanes: Lanes,
    ) -> Submission:
        """Build a submission on the object store and, if this process has one, the read model."""
        results = Results(settings, files, Lookup(settings, files, read_model)) if read_model is not None else None
        duplicates = Duplicates(settings, files, read_model, acceptance.accepted_here)
        return Submission(settings, acceptance, lanes, duplicates, Idempotency(settings, files), results)

    async def upload(self, request: Request, owner: Owner, file: SpooledFile, details: Details) -> Answer[Submitted]:
        """Accept a file, or replay the earlier answer for its key. Raises Problem."""
        payload = {"sha256": file.sha256, "filename": file.filename, **details.non_default_fields()}

        async def work(given: Work) -> Answer[Submitted]:
            return await self.accept(request, owner, file, details, given.image_ids[0], again=given.again)

        return await self.idempotency.once(request, owner, payload, Submitted, work)

    async def fetch(self, request: Request, owner: Owner, url: str, details: Details) -> Answer[Submitted]:
        """Accept a URL, or replay the earlier answer for its key. Raises Problem."""

        async def work(given: Work) -> Answer[Submitted]:
            receipt = await self.acceptance.fetch(
                url,
                self._in_lane(details, owner),
                owner=owner,
                image_id=given.image_ids[0],
                again=given.again,
                traceparent=traceparent_of(request),
            )
            return Answer(202, self.submitted(receipt, request))

        return await self.idempotency.once(
            request, owner, {"url": url, **details.non_default_fields()}, Submitted, work
        )

    async def accept(
        self, request: Request, owner: Owner, file: SpooledFile, details: Details, image_id: ImageId, *, again: bool
    ) -> Answer[Submitted]:
        """Accept a file as `image_id` (202), or return the existing image with `on_duplicate=reuse` (200)."""
        if details.on_duplicate is OnDuplicate.REUSE:
            known = await self._known(owner, file, image_id, again=again)
            if known is not None:
                return Answer(200, self._submitted(request, *known, duplicate=True))
        receipt = await self.acceptance.upload(
            file,
            self._in_lane(details, owner),
            owner=owner,
            image_id=image_id,
            again=again,
            traceparent=traceparent_of(request),
        )
        return Answer(202, self.submitted(receipt, request))

    async def respond(self, request: Request, owner: Owner, answer: Answer[Submitted]) -> Response:
        """Return the response: the result itself, if the client sent `Prefer: wait` and it is ready in time."""
        body, wanted = answer.body, read_preferences(request)
        headers = {"Location": body.status_url}
        if answer.replayed:
            headers[REPLAYED] = "true"
        applied = ["respond-async"] if wanted.respond_async else []
        wait_s = min(wanted.wait_s or 0, self.settings.max_wait_s)
        result: JobResult | None = None
        if self.results is not None and wait_s:
            applied.append(f"wait={wait_s}")
            result = await self.results.within(wait_s, body.job_id, owner, base_url(request, self.settings))
        if applied:
            headers[APPLIED] = ", ".join(applied)
        if result is not None:
            headers["Content-Location"] = body.result_url
            return JSONResponse(result.model_dump(mode="json", exclude_none=True), 200, headers)
        if answer.status == 202:
            headers["Retry-After"] = str(self.settings.poll_after_s)
        return JSONResponse(body.model_dump(mode="json"), answer.status, headers)

    def submitted(self, receipt: Receipt, request: Request) -> Submitted:
        """Return the body of a 202."""
        return self._submitted(request, receipt.image_id, receipt.job_id, receipt.lane)

    def _submitted(
        self,
        request: Request,
        image_id: str,
        job_id: str,
        lane: Lane,
        state: ImageState = ImageState.PROCESSING,
        *,
        duplicate: bool = False,
    ) -> Submitted:
        status_url = f"{base_url(request, self.settings)}/api/v1/images/jobs/{job_id}"
        return Submitted(
            job_id=job_id,
            image_id=image_id,
            status=state,
            lane=lane,
            duplicate=duplicate,
            status_url=status_url,
            result_url=f"{status_url}/result",
        )

    async def _known(
        self, owner: Owner, file: SpooledFile, image_id: ImageId, *, again: bool
    ) -> tuple[str, str, Lane, ImageState] | None:
        """Return image id, job id, lane and state of the owner's newest usable image with these bytes."""
        try:
            if again and await self.acceptance.has_begun(image_id):
                return None  # a retry: the known image is this one
            found = await self.duplicates.newest(owner, file.sha256, usable=True)
        except (DependencyUnavailable, TimeoutError) as error:
            raise unavailable("A dependency", retry_after_s=self.settings.retry_after_s) from error
        if found is None:
            return None
        return found.image_id, found.job_id, found.lane, found.state or ImageState.PROCESSING

    def _in_lane(self, details: Details, owner: Owner) -> Details:
        return replace(details, lane=self.lanes.choose(details.lane, owner))
