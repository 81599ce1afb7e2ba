"""Ingest: images come in. Needs Kafka and the object store, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastapi import APIRouter, FastAPI, Request, Response

from gateway.accept import Accepting
from gateway.bodies import described, read_json
from gateway.edge import base_url, new_app, traceparent_of
from gateway.guard import Who
from gateway.lanes import Lanes
from gateway.limits import UPLOADS, Limits
from gateway.metadata import FIELD_SCHEMAS, FIELDS, Details, check_metadata, read_details, read_url
from gateway.parts import IngestParts
from gateway.problems import documented
from gateway.readiness import health_routes
from gateway.settings import GatewaySettings
from gateway.tus_routes import tus_and_direct_routes
from gateway.uploads import receive_form
from schemas.http_api import FetchImage, ProblemCode, Submitted
from schemas.receipts import Receipt

_UPLOAD_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}, **FIELD_SCHEMAS},
                },
                "encoding": {"metadata": {"contentType": "application/json"}},
            }
        },
    }
}


@dataclass(frozen=True, slots=True)
class Ingest:
    """The endpoints that accept images."""

    settings: GatewaySettings
    accepting: Accepting
    lanes: Lanes
    limits: Limits

    def routes(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(prefix="/api/v1/images", tags=["ingest"])
        away = ProblemCode.DEPENDENCY_UNAVAILABLE
        router.add_api_route(
            "/upload",
            self.upload,
            methods=["POST"],
            status_code=202,
            summary="Upload an image",
            openapi_extra=_UPLOAD_FORM,
            responses=documented(
                ProblemCode.MISSING_FILE,
                ProblemCode.EMPTY_FILE,
                ProblemCode.INVALID_METADATA,
                ProblemCode.INVALID_BUCKET,
                ProblemCode.INVALID_FIELD,
                ProblemCode.UNKNOWN_FIELD,
                ProblemCode.UPLOAD_TOO_SLOW,
                ProblemCode.FILE_TOO_LARGE,
                ProblemCode.UNSUPPORTED_FORMAT,
                ProblemCode.RATE_LIMITED,
                away,
            ),
        )
        router.add_api_route(
            "/fetch",
            self.fetch,
            methods=["POST"],
            status_code=202,
            summary="Have an image fetched from a URL",
            openapi_extra=described(FetchImage),
            responses=documented(
                ProblemCode.INVALID_URL,
                ProblemCode.INVALID_METADATA,
                ProblemCode.INVALID_FIELD,
                ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                ProblemCode.RATE_LIMITED,
                away,
            ),
        )
        return router

    async def upload(self, request: Request, response: Response, identity: Who) -> Submitted:
        """Store the file, have Kafka confirm the event, then answer 202. A 503 means that nothing was accepted."""
        await self.limits.take(request, identity, UPLOADS)
        owner, limit = identity.owner, self.settings.max_upload_bytes
        async with receive_form(request, self.settings, allowed=FIELDS, max_bytes=limit) as form:
            details = read_details(form.fields, max_metadata_bytes=self.settings.max_metadata_bytes)
            details = replace(details, lane=self.lanes.choose(details.lane, owner))
            receipt = await self.accepting.upload(form.file, details, owner=owner, traceparent=traceparent_of(request))
        return submitted(receipt, request, response, self.settings)

    async def fetch(self, request: Request, response: Response, identity: Who) -> Submitted:
        """Have Kafka confirm the request, then answer 202; the fetcher decides whether the URL may be fetched."""
        await self.limits.take(request, identity, UPLOADS)
        owner, asked = identity.owner, await read_json(request, FetchImage, self.settings)
        url = read_url(asked.url)
        context = check_metadata(asked.metadata, max_bytes=self.settings.max_metadata_bytes)
        lane = self.lanes.choose(asked.lane, owner)
        details = Details(bucket=asked.bucket, context=context, tags=asked.tags, category=asked.category, lane=lane)
        receipt = await self.accepting.fetch(url, details, owner=owner, traceparent=traceparent_of(request))
        return submitted(receipt, request, response, self.settings)


def ingest_routes(settings: GatewaySettings, parts: IngestParts) -> APIRouter:
    """Return every route of the ingest app but health."""
    accepting, lanes = Accepting(settings, parts.files, parts.events), Lanes(settings.interactive_per_minute)
    router = APIRouter()
    router.include_router(Ingest(settings, accepting, lanes, parts.limits).routes())
    router.include_router(tus_and_direct_routes(settings, parts.files, accepting, lanes, parts.limits))
    return router


def submitted(receipt: Receipt, request: Request, response: Response, settings: GatewaySettings) -> Submitted:
    """Return the body of a 202, and say in its headers where to look and when."""
    status_url = f"{base_url(request, settings)}/api/v1/images/jobs/{receipt.job_id}"
    response.headers["Location"] = status_url
    response.headers["Retry-After"] = str(settings.poll_after_s)
    return Submitted(
        job_id=receipt.job_id,
        image_id=receipt.image_id,
        lane=receipt.lane,
        status_url=status_url,
        result_url=f"{status_url}/result",
    )


def ingest_app(settings: GatewaySettings, parts: IngestParts) -> FastAPI:
    """Return the ingest app, for a deployment of its own."""
    app = new_app("ingest", "Darkroom ingest", "Images in: by upload or by URL.", settings, parts)
    app.include_router(ingest_routes(settings, parts))
    app.include_router(health_routes(parts.readiness))
    return app
