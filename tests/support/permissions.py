"""The scope every endpoint of the gateway requires, written out: the routes must declare exactly these."""

from __future__ import annotations

from gateway.access.identity import Scope

PUBLIC = None

PERMISSIONS: dict[tuple[str, str], Scope | None] = {
    # Ingest.
    ("POST", "/api/v1/images/upload"): Scope.WRITE,
    ("POST", "/api/v1/images/fetch"): Scope.WRITE,
    ("POST", "/api/v1/images/batch"): Scope.WRITE,
    ("GET", "/api/v1/images/by-digest/{sha256}"): Scope.READ,
    ("HEAD", "/api/v1/images/by-digest/{sha256}"): Scope.READ,
    ("PATCH", "/api/v1/images/{image_id}"): Scope.WRITE,
    ("DELETE", "/api/v1/images/{image_id}"): Scope.WRITE,
    ("GET", "/api/v1/usage"): Scope.READ,
    ("OPTIONS", "/api/v1/uploads"): PUBLIC,
    ("POST", "/api/v1/uploads"): Scope.WRITE,
    ("OPTIONS", "/api/v1/uploads/{upload_id}"): PUBLIC,
    ("GET", "/api/v1/uploads/{upload_id}"): Scope.WRITE,
    ("HEAD", "/api/v1/uploads/{upload_id}"): Scope.WRITE,
    ("PATCH", "/api/v1/uploads/{upload_id}"): Scope.WRITE,
    ("POST", "/api/v1/uploads/{upload_id}"): Scope.WRITE,  # X-HTTP-Method-Override
    ("DELETE", "/api/v1/uploads/{upload_id}"): Scope.WRITE,
    ("POST", "/api/v1/uploads/direct"): Scope.WRITE,
    ("POST", "/api/v1/uploads/direct/{upload_id}/complete"): Scope.WRITE,
    ("DELETE", "/api/v1/uploads/direct/{upload_id}"): Scope.WRITE,
    # Query.
    ("GET", "/api/v1/images/jobs/{job_id}"): Scope.READ,
    ("GET", "/api/v1/images/jobs/{job_id}/result"): Scope.READ,
    ("GET", "/api/v1/images/jobs/{job_id}/events"): Scope.READ,
    ("GET", "/api/v1/events"): Scope.READ,
    ("GET", "/api/v1/images/batch"): Scope.READ,
    ("GET", "/api/v1/images"): Scope.READ,
    ("GET", "/api/v1/images/{image_id}"): Scope.READ,
    ("GET", "/api/v1/images/{image_id}/metadata"): Scope.READ,
    ("GET", "/api/v1/images/{image_id}/all"): Scope.READ,
    ("GET", "/api/v1/images/{image_id}/history"): Scope.READ,
    ("GET", "/api/v1/images/{image_id}/lineage"): Scope.READ,
    ("GET", "/api/v1/images/{image_id}/text"): Scope.READ,
    ("GET", "/api/v1/images/{image_id}/direct"): Scope.READ,
    ("GET", "/api/v1/images/{image_id}/erasure"): Scope.READ,
    # Search.
    ("GET", "/api/v1/search"): Scope.SEARCH,
    ("POST", "/api/v1/search/image"): Scope.SEARCH,
    # Vectors.
    ("POST", "/api/v1/features"): Scope.SEARCH,
    ("POST", "/api/v1/features/batch"): Scope.SEARCH,
    ("POST", "/extract-features"): Scope.SEARCH,
    ("POST", "/extract-features-batch"): Scope.SEARCH,
    # Operation.
    ("GET", "/"): PUBLIC,
    ("GET", "/docs"): PUBLIC,
    ("GET", "/openapi.json"): PUBLIC,
    ("GET", "/metrics"): PUBLIC,
    ("GET", "/health/live"): PUBLIC,
    ("GET", "/health/ready"): PUBLIC,
    ("GET", "/api/v1/health"): PUBLIC,
    ("GET", "/api/v1/health/stats"): Scope.READ,
    ("GET", "/api/v1/health/failed"): Scope.READ,
    # Admin.
    ("POST", "/api/v1/admin/keys"): Scope.ADMIN,
    ("GET", "/api/v1/admin/keys"): Scope.ADMIN,
    ("DELETE", "/api/v1/admin/keys/{key_id}"): Scope.ADMIN,
    ("POST", "/api/v1/admin/reprocess"): Scope.ADMIN,
    ("GET", "/api/v1/admin/reprocess"): Scope.ADMIN,
    ("GET", "/api/v1/admin/reprocess/{job_id}"): Scope.ADMIN,
    ("POST", "/api/v1/admin/reprocess/{job_id}/cancel"): Scope.ADMIN,
    ("POST", "/api/v1/admin/reconcile"): Scope.ADMIN,
    ("GET", "/api/v1/admin/dead-letters"): Scope.ADMIN,
    ("GET", "/api/v1/admin/dead-letters/{agent}/{letter_id}"): Scope.ADMIN,
    ("POST", "/api/v1/admin/dead-letters/replay"): Scope.ADMIN,
    ("POST", "/api/v1/admin/dead-letters/discard"): Scope.ADMIN,
    ("GET", "/api/v1/admin/agents"): Scope.ADMIN,
    ("POST", "/api/v1/admin/agents/{name}/pause"): Scope.ADMIN,
    ("POST", "/api/v1/admin/agents/{name}/resume"): Scope.ADMIN,
}
