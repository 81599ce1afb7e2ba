"""Listing of an owner's images, with filters and pages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic import StringConstraints

from gateway.access.dependencies import Caller
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.cursors import cursor_after, place_of
from gateway.http.etags import CONDITIONAL, TAGGED, answered
from gateway.http.problems import Problem, documented
from gateway.http.request_context import base_url
from gateway.http.timestamps import read_time
from gateway.images.lookup import Lookup
from gateway.images.views import ITEM_KEYS, image_item
from gateway.settings import GatewaySettings
from schemas.annotations import MAX_WORD, Category, Tag
from schemas.http.images import MAX_NAMED, MAX_PAGE, PAGE, ImagePage, ListedState
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.http.submissions import BUCKET_PATTERN
from schemas.values import ImageState, Owner
from streams.concurrency.timeouts import bounded
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Filters, ImageRecord
from streams.read_model.words import words_of

_PATH = "/api/v1/images"
_DATE = {"format": "date-time"}

_WORD = r"[^\W_]"  # at least one letter or digit, otherwise nothing is searchable
_Label = Annotated[str, StringConstraints(max_length=MAX_WORD, pattern=_WORD)]
Order = Literal["newest", "oldest"]


def _repeatable(description: str) -> Any:
    return Query(description=description, default_factory=list, max_length=MAX_NAMED)


@dataclass(frozen=True, slots=True)
class Listing:
    """The endpoint that lists images."""

    settings: GatewaySettings
    read_model: ReadModel
    lookup: Lookup

    def routes(self) -> Routes:
        """Return the route."""
        routes = Routes(_PATH, tags=["query"])
        found = documented(ProblemCode.INVALID_CURSOR, ProblemCode.INVALID_FIELD, ProblemCode.DEPENDENCY_UNAVAILABLE)
        routes.add_api_route(
            "",
            self.images,
            response_model=ImagePage,
            dependencies=[requires(Scope.READ)],
            summary="List images",
            openapi_extra=CONDITIONAL,
            responses={
                200: {
                    "headers": {
                        "ETag": TAGGED,
                        "Link": {
                            "description": 'the next page, `rel="next"` (RFC 8288); absent on the last',
                            "schema": {"type": "string"},
                        },
                    }
                },
                304: {"description": "the page is unchanged"},
                **found,
            },
        )
        return routes

    async def images(
        self,
        request: Request,
        owner: Caller,
        *,
        label: Annotated[list[_Label], _repeatable("label of a detected object; repeated: all of them")],
        tag: Annotated[list[Tag], _repeatable("tag; repeated: all of them")],
        state: Annotated[ListedState | None, Query(description="state of the image")] = None,
        bucket: Annotated[str | None, Query(pattern=BUCKET_PATTERN)] = None,
        category: Category | None = None,
        since: Annotated[
            str | None, Query(description="submitted at or after this time", json_schema_extra=_DATE)
        ] = None,
        until: Annotated[str | None, Query(description="submitted before this time", json_schema_extra=_DATE)] = None,
        text: Annotated[
            str | None,
            Query(description="words that the image's text contains, all of them", max_length=500, pattern=_WORD),
        ] = None,
        order: Annotated[Order, Query(description="by time of acceptance")] = "newest",
        page_size: Annotated[int, Query(ge=1, description=f"images per page, capped at {MAX_PAGE}")] = PAGE,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the previous page", max_length=200)] = None,
    ) -> Response:
        """List the caller's images, newest first. An image appears with its first event from the pipeline, shortly
        after the 202. New images do not shift pages. Deleted images are omitted, so a page may be shorter than
        `page_size`: only a page without `next_cursor` is the last.
        """
        wanted = Filters(
            state=ImageState(state) if state else None,
            bucket=bucket,
            labels=tuple(sorted(set(label))),  # sorted: the order of the parameters does not matter to a cursor
            tags=tuple(sorted(set(tag))),
            category=category,
            since=read_time(since, "since"),
            until=read_time(until, "until"),
            text=self._words(text),
        )
        listing = {"owner": owner, "order": order, **asdict(wanted)}
        records = await self._page(owner, wanted, order, _place(cursor, listing), limit=min(page_size, MAX_PAGE) + 1)
        more = len(records) > min(page_size, MAX_PAGE)
        following = cursor_after(records[-2].image_id, listing) if more else None
        shown = await self.lookup.shown(records[:-1] if more else records)
        base = base_url(request, self.settings)
        page = ImagePage(items=tuple(image_item(record, base) for record in shown), next_cursor=following)
        return answered(request, page, {"Link": _link(request, base, following)} if following else {})

    async def _page(
        self, owner: Owner, wanted: Filters, order: Order, place: str | None, *, limit: int
    ) -> list[ImageRecord]:
        page = self.read_model.page(
            owner, wanted, limit=limit, beyond=place, oldest_first=order == "oldest", keys=ITEM_KEYS
        )
        return await bounded(page, self.settings.query_timeout_s)

    def _words(self, text: str | None) -> str | None:
        if text is not None and (len(text) > self.settings.max_query_length or not words_of(text)):
            raise _invalid_field(
                "text", f"must contain a word and have at most {self.settings.max_query_length} characters"
            )
        return text


def _place(cursor: str | None, listing: dict[str, object]) -> str | None:
    if cursor is None:
        return None
    try:
        return place_of(cursor, listing)
    except ValueError:
        detail = "Send `next_cursor` unchanged, with the filters and the order of the page that returned it."
        raise Problem(ProblemCode.INVALID_CURSOR, detail, (ProblemItem(field="cursor", detail=detail),)) from None


def _link(request: Request, base: str, following: str) -> str:
    query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    return f'<{base}{_PATH}?{urlencode([*query, ("cursor", following)])}>; rel="next"'


def _invalid_field(field: str, detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_FIELD, f"{field}: {detail}", (ProblemItem(field=field, detail=detail),))
