"""Routes that accept a single image: multipart upload and fetch by URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from gateway.access.dependencies import Who
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.digests import DIGEST_PARAMETER
from gateway.http.json_bodies import described, read_json
from gateway.http.problems import documented
from gateway.http.request_bodies import FILENAME_FIELD, SHA256_FIELD, receive_image
from gateway.images.results import PREFER_PARAMETER
from gateway.images.user_metadata import check_metadata
from gateway.limits.rate_limits import UPLOADS, Limits
from gateway.settings import GatewaySettings
from gateway.uploads.idempotency import KEY_PARAMETER, Answer, read_key
from gateway.uploads.submission import FORM_REFUSALS, REFUSALS, Submission
from gateway.uploads.submission_fields import (
    FIELD_SCHEMAS,
    FIELDS,
    JSON_FIELDS,
    Details,
    query_parameters,
    read_details,
    read_url,
)
from schemas.http.jobs import JobResult
from schemas.http.problems import ProblemCode
from schemas.http.submissions import FetchImage, Submitted
from schemas.values import Owner

_FIELDS = FIELDS | {SHA256_FIELD}
_BYTES = {"type": "string", "format": "binary"}
_SHA256_SCHEMA = {
    "type": "string",
    "pattern": "^[0-9a-fA-F]{64}$",
    "description": "SHA-256 of the file; a file with another one is rejected",
}
_FILENAME_SCHEMA = {"type": "string", "description": "the file's name"}
_HEADERS = [KEY_PARAMETER, PREFER_PARAMETER, DIGEST_PARAMETER]
_UPLOAD_FORM = {
    "parameters": [
        *_HEADERS,
        *query_parameters(
            "for a file as the request body", {FILENAME_FIELD: _FILENAME_SCHEMA, SHA256_FIELD: _SHA256_SCHEMA}
        ),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        **FIELD_SCHEMAS,
                        SHA256_FIELD: _SHA256_SCHEMA,
                    },
                },
                "encoding": {name: {"contentType": "application/json"} for name in JSON_FIELDS},
            },
            "image/*": {"schema": _BYTES},
            "application/octet-stream": {"schema": _BYTES},
        },
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": JobResult | Submitted,
        "description": "the result itself, with `Prefer: wait` and if it is ready in time; or your existing image of "
        "the same bytes, with `on_duplicate=reuse`",
    }
}


@dataclass(frozen=True, slots=True)
class Ingest:
    """The endpoints that accept images."""

    settings: GatewaySettings
    submission: Submission
    limits: Limits

    def routes(self) -> Routes:
        """Return the routes."""
        routes = Routes("/api/v1/images", tags=["ingest"])
        routes.add_api_route(
            "/upload",
            self.upload,
            methods=["POST"],
            status_code=202,
            dependencies=[requires(Scope.WRITE)],
            summary="Upload an image",
            response_model=Submitted,
            openapi_extra=_UPLOAD_FORM,
            responses=_RESPONSES
            | documented(
                *FORM_REFUSALS,
                *REFUSALS,
            ),
        )
        routes.add_api_route(
            "/fetch",
            self.fetch,
            methods=["POST"],
            status_code=202,
            dependencies=[requires(Scope.WRITE)],
            summary="Fetch an image from a URL",
            response_model=Submitted,
            openapi_extra={"parameters": _HEADERS, **described(FetchImage)},
            responses=_RESPONSES
            | documented(
                ProblemCode.INVALID_URL,
                ProblemCode.INVALID_METADATA,
                ProblemCode.INVALID_FIELD,
                ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                *REFUSALS,
            ),
        )
        return routes

    async def upload(self, request: Request, identity: Who) -> Response:
        """Store the file and publish its event; 202 after Kafka's confirmation. 503: nothing was accepted."""
        read_key(request)  # rejects an invalid key before the body is read
        await self.limits.take(request, identity, UPLOADS)
        owner, limit = identity.owner, self.settings.max_upload_bytes
        async with receive_image(request, self.settings, allowed=_FIELDS, max_bytes=limit) as form:
            details = read_details(form.fields, max_metadata_bytes=self.settings.max_metadata_bytes)
            answer = await self.submission.upload(request, owner, form.file, details)
        return await self._respond(request, owner, answer)

    async def fetch(self, request: Request, identity: Who) -> Response:
        """Publish the request; 202 after Kafka's confirmation. The fetcher decides whether the URL is allowed."""
        read_key(request)  # rejects an invalid key before the body is read
        await self.limits.take(request, identity, UPLOADS)
        owner, requested = identity.owner, await read_json(request, FetchImage, self.settings)
        url = read_url(requested.url)
        details = Details(
            bucket=requested.bucket,
            context=check_metadata(requested.metadata, max_bytes=self.settings.max_metadata_bytes),
            tags=tuple(dict.fromkeys(requested.tags)),
            category=requested.category,
            lane=requested.lane,
            profile=requested.profile.as_profile(),
        )
        answer = await self.submission.fetch(request, owner, url, details)
        return await self._respond(request, owner, answer)

    async def _respond(self, request: Request, owner: Owner, answer: Answer[Submitted]) -> Response:
        if answer.replayed:
            await self.limits.refund(request.scope, UPLOADS)
        return await self.submission.respond(request, owner, answer)
