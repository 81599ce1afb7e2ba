"""Failed images with their reasons and, for operators, links to their dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request, Response

from gateway.access import auth_errors
from gateway.access.dependencies import Who
from gateway.access.identity import Identity, Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.cursors import cursor_after, place_of
from gateway.http.problems import Problem, documented
from gateway.http.request_context import base_url
from gateway.images.lookup import Lookup
from gateway.settings import GatewaySettings
from schemas.http.operations import FailedImage, FailedPage
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.values import ErrorCode, ImageState, StageState, job_id_of
from streams.concurrency.timeouts import bounded
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Filters, ImageRecord

PATH = "/api/v1/health/failed"
MAX_FAILED, FAILED = 200, 20
_FAILED = Filters(state=ImageState.FAILED)

AllOwners = Annotated[
    bool | None, Query(description="include all owners (scope `admin`); default: true with that scope")
]


def owner_filter(identity: Identity, everybody: bool | None) -> str | None:
    """Return the owner to filter by, None for all owners. Raises Problem (403) without the scope `admin`."""
    if everybody is None:
        everybody = Scope.ADMIN in identity.scopes
    if everybody and Scope.ADMIN not in identity.scopes:
        raise auth_errors.insufficient(Scope.ADMIN)
    return None if everybody else identity.owner


@dataclass(frozen=True, slots=True)
class Failures:
    """The endpoint that lists failed images."""

    settings: GatewaySettings
    read_model: ReadModel
    lookup: Lookup

    def routes(self) -> Routes:
        """Return the route."""
        routes = Routes(tags=["operation"])
        routes.add_api_route(
            PATH,
            self.failed,
            dependencies=[requires(Scope.READ)],
            summary="List failed images",
            response_model_exclude_none=True,
            responses=documented(
                ProblemCode.INVALID_FIELD, ProblemCode.INVALID_CURSOR, ProblemCode.DEPENDENCY_UNAVAILABLE
            ),
        )
        return routes

    async def failed(
        self,
        request: Request,
        response: Response,
        identity: Who,
        limit: Annotated[int, Query(ge=1, le=MAX_FAILED)] = FAILED,
        everybody: AllOwners = None,
        cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
    ) -> FailedPage:
        """List the caller's failed images, newest first; with the scope `admin` all owners', with dead letter links."""
        owner = owner_filter(identity, everybody)
        listing = {"failed": owner or "", "everybody": owner is None}
        page = self.read_model.page(owner, _FAILED, limit=limit + 1, beyond=_place(cursor, listing), keys=FAILED_KEYS)
        records = await bounded(page, self.settings.query_timeout_s)
        following = cursor_after(records[limit - 1].image_id, listing) if len(records) > limit else None
        base = base_url(request, self.settings)
        if following:
            query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
            response.headers["Link"] = f'<{base}{PATH}?{urlencode([*query, ("cursor", following)])}>; rel="next"'
        visible = await self.lookup.shown(records[:limit])
        operator = Scope.ADMIN in identity.scopes
        images = tuple(failed_image(record, base, with_owner=owner is None, operator=operator) for record in visible)
        return FailedPage(images=images, next_cursor=following)


FAILED_KEYS = ("stages", "error_code", "error_message", "submitted_at", "finished_at")
"""Keys of the record that `failed_image` reads, besides those that every record has."""


def failed_image(record: ImageRecord, base: str, *, with_owner: bool, operator: bool) -> FailedImage:
    """Return one image of the list; `operator`: with a link to its dead letters."""
    failed = {
        name: stage.reason or ErrorCode.INTERNAL_ERROR.value
        for name, stage in record.stages.items()
        if stage.state is StageState.FAILED
    }
    ended = sorted((record.stages[name].finished_at or "~", name) for name in failed)
    job_id = job_id_of(record.image_id, record.generation)
    letters = f"{base}/api/v1/admin/dead-letters?{urlencode({'image_id': record.image_id})}"
    return FailedImage(
        image_id=record.image_id,
        job_id=job_id,
        owner=record.owner if with_owner else None,
        code=record.error_code or ErrorCode.INTERNAL_ERROR,
        message=record.error_message or "",
        stage=ended[0][1] if ended else None,
        stages=failed,
        submitted_at=record.submitted_at,
        failed_at=record.finished_at,
        status_url=f"{base}/api/v1/images/jobs/{job_id}",
        dead_letters_url=letters if operator else None,
    )


def _place(cursor: str | None, listing: dict[str, object]) -> str | None:
    if cursor is None:
        return None
    try:
        return place_of(cursor, listing)
    except ValueError:
        detail = "Send `next_cursor` unchanged, with the filters of the page that returned it."
        raise Problem(ProblemCode.INVALID_CURSOR, detail, (ProblemItem(field="cursor", detail=detail),)) from None
