"""Routes that return jobs and images, and delete an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request, Response
from pydantic import StringConstraints

from gateway.access.dependencies import Caller
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.etags import CONDITIONAL, TAGGED, answered
from gateway.http.problems import Problem, documented
from gateway.http.request_context import base_url, traceparent_of
from gateway.images.deletion import Deletion
from gateway.images.delivery import Size
from gateway.images.lookup import Lookup
from gateway.images.results import Results
from gateway.images.views import image_view, job_status, submitted
from gateway.settings import GatewaySettings
from schemas.http.images import MAX_BATCH, BatchError, ImageBatch, ImageSizes, ImageView
from schemas.http.jobs import JobResult, JobStatus
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.http.submissions import DeletionSubmitted
from schemas.values import ImageState
from streams.object_store.protocol import FileStore

Ids = Annotated[
    list[Annotated[str, StringConstraints(pattern=rf"^[^,]+(?:,[^,]+){{0,{MAX_BATCH - 1}}}$")]],
    Query(description=f"ids, repeated or comma-separated, at most {MAX_BATCH}", min_length=1, max_length=MAX_BATCH),
]


@dataclass(frozen=True, slots=True)
class Images:
    """The endpoints of images and jobs."""

    settings: GatewaySettings
    files: FileStore
    lookup: Lookup
    deletion: Deletion

    def routes(self) -> Routes:
        """Return the routes; fixed paths before those with an id."""
        routes = Routes("/api/v1/images", tags=["query"])
        lookup_problems = documented(ProblemCode.NOT_FOUND, ProblemCode.GONE, ProblemCode.DEPENDENCY_UNAVAILABLE)
        not_finished = documented(ProblemCode.NOT_FINISHED)
        unchanged: dict[int | str, dict[str, Any]] = {
            200: {"headers": {"ETag": TAGGED}},
            304: {"description": "unchanged"},
        }
        size_problems = {
            **lookup_problems,
            **not_finished,
            **documented(ProblemCode.NOT_FOUND, ProblemCode.NO_SUCH_SIZE),
        }

        routes.add_api_route(
            "/jobs/{job_id}",
            self.status,
            response_model=JobStatus,
            dependencies=[requires(Scope.READ)],
            summary="Get a job's status",
            openapi_extra=CONDITIONAL,
            responses={**lookup_problems, **unchanged},
        )
        routes.add_api_route(
            "/jobs/{job_id}/result",
            self.result,
            response_model=JobResult,
            dependencies=[requires(Scope.READ)],
            summary="Get a job's result",
            openapi_extra=CONDITIONAL,
            responses={**lookup_problems, **not_finished, **unchanged},
        )
        routes.add_api_route(
            "/batch",
            self.batch,
            dependencies=[requires(Scope.READ)],
            summary="Get several images in one size",
            responses=documented(ProblemCode.INVALID_FIELD, ProblemCode.DEPENDENCY_UNAVAILABLE),
        )
        routes.add_api_route(
            "/{image_id}",
            self.image,
            dependencies=[requires(Scope.READ)],
            summary="Get one size of an image",
            responses=size_problems,
        )
        routes.add_api_route(
            "/{image_id}/all",
            self.sizes,
            dependencies=[requires(Scope.READ)],
            summary="Get every size of an image",
            responses={**lookup_problems, **not_finished},
        )
        routes.add_api_route(
            "/{image_id}",
            self.delete,
            methods=["DELETE"],
            status_code=202,
            dependencies=[requires(Scope.WRITE)],
            summary="Delete an image",
            responses=lookup_problems,
        )
        return routes

    async def status(self, job_id: str, request: Request, owner: Caller) -> Response:
        """Return the job's status. Available from the 202 on, also before the pipeline starts."""
        job = await self.lookup.job(job_id, owner)
        headers = {"Retry-After": str(self.settings.poll_after_s)} if job.state is ImageState.PROCESSING else {}
        return answered(request, job_status(job, base_url(request, self.settings)), headers)

    async def result(self, job_id: str, request: Request, owner: Caller) -> Response:
        """Return the job's result, for a rejected or failed image the reason. 409 until the job has ended."""
        job = await self.lookup.job(job_id, owner)
        result = await Results(self.settings, self.files, self.lookup).of(job, base_url(request, self.settings))
        return answered(request, result)

    async def image(self, image_id: str, request: Request, owner: Caller, size: Size = "medium") -> ImageView:
        """Return width, height, bytes, hash and URL of one size."""
        record = await self.lookup.image(image_id, owner)
        return image_view(record, self.lookup.rendition(record, size), base_url(request, self.settings))

    async def sizes(self, image_id: str, request: Request, owner: Caller) -> ImageSizes:
        """Return every size of the image. 409 until the resizer is done."""
        record = await self.lookup.image(image_id, owner)
        self.lookup.refuse_without_sizes(record)
        base = base_url(request, self.settings)
        return ImageSizes(image_id=image_id, sizes={r.name: image_view(record, r, base) for r in record.renditions})

    async def batch(
        self,
        request: Request,
        owner: Caller,
        image_ids: Ids,
        size: Size = "medium",
    ) -> ImageBatch:
        """Return the available images in the requested order, and an error for each of the others."""
        wanted = list(dict.fromkeys(name for given in image_ids for name in given.split(",") if name))
        if not 1 <= len(wanted) <= MAX_BATCH:
            detail = f"must name 1 to {MAX_BATCH} images"
            raise Problem(ProblemCode.INVALID_FIELD, detail, (ProblemItem(field="image_ids", detail=detail),))
        base = base_url(request, self.settings)
        images: list[ImageView] = []
        errors: list[BatchError] = []
        for image_id, found in zip(wanted, await self.lookup.images(wanted, owner), strict=True):
            try:
                if isinstance(found, Problem):
                    raise found
                images.append(image_view(found, self.lookup.rendition(found, size), base))
            except Problem as problem:
                errors.append(BatchError(image_id=image_id[:64], code=problem.code, detail=problem.detail))
        return ImageBatch(images=tuple(images), errors=tuple(errors))

    async def delete(self, image_id: str, request: Request, response: Response, owner: Caller) -> DeletionSubmitted:
        """Delete an image: hidden immediately, removed in the background (see the job). Idempotent."""
        known = await self.lookup.known(image_id, owner)
        receipt = await self.deletion.delete(
            image_id, known.generation, owner=owner, traceparent=traceparent_of(request)
        )
        accepted = submitted(receipt, request, response, self.settings)
        erasure_url = f"{base_url(request, self.settings)}/api/v1/images/{image_id}/erasure"
        return DeletionSubmitted(**accepted.model_dump(), erasure_url=erasure_url)
