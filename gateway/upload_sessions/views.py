"""Public views of resumable and direct uploads."""

from __future__ import annotations

from gateway.upload_sessions.store import EndedUpload, UploadRecord
from schemas.http.jobs import JobError
from schemas.http.resumable import UploadState, UploadView
from schemas.http.submissions import Submitted


def job_url(base: str, job_id: str) -> str:
    """Return the URL of a job's status."""
    return f"{base}/api/v1/images/jobs/{job_id}"


def upload_url(base: str, upload_id: str) -> str:
    """Return the URL of an upload."""
    return f"{base}/api/v1/uploads/{upload_id}"


def view_of(found: UploadRecord | EndedUpload, base: str, *, offset: int | None) -> UploadView:
    """Return an upload as its owner sees it."""
    if isinstance(found, UploadRecord):
        return UploadView(
            upload_id=found.upload_id,
            state=UploadState.RECEIVING,
            offset=offset,
            size=found.size,
            expires_at=found.expires_at,
        )
    refusal = found.refusal
    return UploadView(
        upload_id=found.upload_id,
        state=UploadState.REFUSED if refusal else UploadState.ACCEPTED,
        offset=None if refusal else found.size,
        size=None if refusal else found.size,
        expires_at=found.expires_at,
        job=None if refusal else job_of(found, base),
        error=JobError(code=refusal.code, message=refusal.detail) if refusal else None,
    )


def job_of(ended: EndedUpload, base: str) -> Submitted:
    """Return the job of an accepted upload."""
    status_url = job_url(base, ended.job_id or "")
    return Submitted(
        job_id=ended.job_id or "",
        image_id=ended.image_id or "",
        lane=ended.lane,
        duplicate=ended.duplicate,
        status_url=status_url,
        result_url=f"{status_url}/result",
    )
