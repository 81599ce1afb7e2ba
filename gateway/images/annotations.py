"""Annotations: an image's description, and changes of its tags, category and metadata by its owner.

A change is published as a fact, so a rebuilt read model contains it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header, Request, Response
from pydantic import JsonValue

from gateway.access.dependencies import Caller, Who
from gateway.access.identity import Identity, Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.etags import CONDITIONAL, TAGGED, answered, matches, tag_of
from gateway.http.json_bodies import JSON, described, read_json
from gateway.http.problems import Problem, documented, unavailable
from gateway.http.request_context import base_url, traceparent_of
from gateway.images.lookup import Lookup
from gateway.images.revisions import Revisions
from gateway.images.user_metadata import check_metadata
from gateway.images.views import image_details
from gateway.protocols import EventSink
from gateway.settings import GatewaySettings
from schemas.events.facts import ImageAnnotated
from schemas.http.images import AnnotationPatch, ImageDetails
from schemas.http.problems import ProblemCode
from schemas.values import Owner
from streams import topics
from streams.concurrency.timeouts import bounded
from streams.errors import DeliveryUnconfirmed, DependencyUnavailable
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord

log = logging.getLogger(__name__)

MERGE_PATCH = "application/merge-patch+json"
_MEDIA_TYPES = (MERGE_PATCH, JSON)
_ATTEMPTS = 10  # under concurrent changes of the same image
_POLL_S = 0.05

IfMatch = Annotated[
    str | None,
    Header(description="change the image only if this is its current ETag, from `/metadata` or a PATCH"),
]


@dataclass(frozen=True, slots=True)
class Annotations:
    """The endpoints that return and change an image's description."""

    settings: GatewaySettings
    events: EventSink
    read_model: ReadModel
    lookup: Lookup
    revisions: Revisions
    count_change: Callable[[Request, Identity], Awaitable[None]]  # raises Problem (429) beyond the owner's limit

    def routes(self) -> Routes:
        """Return the routes."""
        routes = Routes("/api/v1/images", tags=["query"])
        lookup_problems = (ProblemCode.NOT_FOUND, ProblemCode.GONE, ProblemCode.DEPENDENCY_UNAVAILABLE)
        etag = {"ETag": {**TAGGED, "description": "of this description; for If-None-Match and If-Match"}}
        routes.add_api_route(
            "/{image_id}/metadata",
            self.details,
            response_model=ImageDetails,
            dependencies=[requires(Scope.READ)],
            summary="Get an image's description",
            openapi_extra=CONDITIONAL,
            responses={200: {"headers": etag}, 304: {"description": "unchanged"}, **documented(*lookup_problems)},
        )
        routes.add_api_route(
            "/{image_id}",
            self.change,
            methods=["PATCH"],
            response_model=ImageDetails,
            dependencies=[requires(Scope.WRITE)],
            summary="Change tags, category and metadata",
            openapi_extra=described(AnnotationPatch, media_types=_MEDIA_TYPES),
            responses={
                200: {"headers": etag, "description": "changed and visible in every response"},
                202: {
                    "headers": etag,
                    "model": ImageDetails,
                    "description": "changed, and visible in every response soon",
                },
                **documented(
                    *lookup_problems,
                    ProblemCode.PRECONDITION_FAILED,
                    ProblemCode.INVALID_METADATA,
                    ProblemCode.INVALID_FIELD,
                    ProblemCode.UNKNOWN_FIELD,
                    ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                    ProblemCode.RATE_LIMITED,
                    ProblemCode.OVERLOADED,
                ),
            },
        )
        return routes

    async def details(self, image_id: str, request: Request, owner: Caller) -> Response:
        """Return an image's description, without positions of text and objects; from the 202 on, as submitted."""
        record = await self.lookup.accepted(image_id, owner)
        return answered(request, image_details(record, base_url(request, self.settings)))

    async def change(self, image_id: str, request: Request, identity: Who, if_match: IfMatch = None) -> Response:
        """Apply a JSON Merge Patch (RFC 7396): absent fields stay, null removes. 200 when the change is visible in
        every response, 202 when it is durable and visible soon. `If-Match` prevents lost updates.
        """
        patch = await read_json(request, AnnotationPatch, self.settings, media_types=_MEDIA_TYPES)
        if patch.context is not None:
            check_metadata(patch.context, max_bytes=self.settings.max_json_bytes)  # bounds the depth before merging
        await self.count_change(request, identity)
        owner, base = identity.owner, base_url(request, self.settings)
        wanted, annotation = await self._reserve(image_id, owner, patch, if_match, base)
        if annotation is not None:
            await self._publish(annotation, traceparent_of(request))
        visible = await self._await_visible(wanted, owner)
        answer = _described(visible or wanted, base)
        if visible is None:
            answer.status_code = 202
            answer.headers["Location"] = f"{base}/api/v1/images/{image_id}/metadata"
            answer.headers["Retry-After"] = str(self.settings.poll_after_s)
        return answer

    async def _reserve(
        self, image_id: str, owner: Owner, patch: AnnotationPatch, if_match: str | None, base: str
    ) -> tuple[ImageRecord, ImageAnnotated | None]:
        """Return the changed image, and the revision to publish; None if the read model has it already."""
        for _ in range(_ATTEMPTS):
            known, pending = await self._newest(image_id, owner)
            if if_match is not None and not matches(if_match, _described(known, base).headers["etag"]):
                raise Problem(
                    ProblemCode.PRECONDITION_FAILED,
                    "The image has changed: If-Match is not its current ETag. Get it again.",
                )
            changes = self._changes(known, patch)
            if not changes:
                return known, pending  # published again: the first request may have crashed before publishing
            wanted = known.model_copy(update={**changes, "revision": known.revision + 1})
            annotation = ImageAnnotated(
                image_id=image_id,
                owner=owner,
                generation=known.generation,
                profile=known.profile(),
                revision=wanted.revision,
                tags=wanted.tags,
                category=wanted.category,
                context=wanted.context,
            )
            if await self._take_number(annotation):
                return wanted, annotation
        detail = "Too many concurrent changes of this image. Nothing was changed; retry."
        raise Problem(ProblemCode.OVERLOADED, detail, headers={"Retry-After": str(self.settings.retry_after_s)})

    async def _newest(self, image_id: str, owner: Owner) -> tuple[ImageRecord, ImageAnnotated | None]:
        """Return an image with its newest revision applied, and that revision if the read model lacks it."""
        known = await self.lookup.accepted(image_id, owner)
        newest = await bounded(self.revisions.newest(image_id), self.settings.storage_timeout_s)
        if newest is None or newest.revision <= known.revision:
            return known, None
        kept = {name: getattr(newest, name) for name in ("tags", "category", "context", "revision")}
        return known.model_copy(update=kept), newest

    def _changes(self, known: ImageRecord, patch: AnnotationPatch) -> dict[str, Any]:
        wanted: dict[str, Any] = {}
        if "tags" in patch.model_fields_set:
            wanted["tags"] = tuple(dict.fromkeys(patch.tags or ()))
        if "category" in patch.model_fields_set:
            wanted["category"] = patch.category
        if "context" in patch.model_fields_set:
            merged = merge_patch(known.context, patch.context) if patch.context is not None else {}
            assert isinstance(merged, dict)  # noqa: S101 - merging an object yields an object
            wanted["context"] = check_metadata(merged, max_bytes=self.settings.max_metadata_bytes)
        return {name: value for name, value in wanted.items() if value != getattr(known, name)}

    async def _take_number(self, annotation: ImageAnnotated) -> bool:
        try:
            if not await bounded(self.revisions.reserve(annotation), self.settings.storage_timeout_s):
                return False
            # A deletion accepted meanwhile may have listed the image's objects before this one existed.
            await self.lookup.accepted(annotation.image_id, Owner(annotation.owner))
        except BaseException:
            await asyncio.shield(self._release(annotation))
            raise
        return True

    async def _publish(self, annotation: ImageAnnotated, traceparent: str) -> None:
        try:
            sent = self.events.send(topics.FACTS, annotation, traceparent=traceparent)
            await bounded(sent, self.settings.delivery_timeout_s)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning(
                "annotation not confirmed by Kafka", extra={"image_id": annotation.image_id, "error": repr(error)}
            )
            if isinstance(error, DependencyUnavailable) and not isinstance(error, DeliveryUnconfirmed):
                await asyncio.shield(self._release(annotation))
                raise unavailable("Kafka", retry_after_s=self.settings.retry_after_s) from error
            # It may be in the log: the number stays reserved, and the next change builds on this one.
            detail = "Kafka did not confirm the change in time. It may still be applied; it is safe to retry."
            headers = {"Retry-After": str(self.settings.retry_after_s)}
            raise Problem(ProblemCode.DEPENDENCY_UNAVAILABLE, detail, headers=headers) from error
        try:
            await bounded(self.revisions.remove_older(annotation), self.settings.storage_timeout_s)
        except (DependencyUnavailable, TimeoutError) as error:  # the next change removes them
            log.warning("could not remove old revisions", extra={"image_id": annotation.image_id, "error": repr(error)})

    async def _release(self, annotation: ImageAnnotated) -> None:
        try:
            await bounded(self.revisions.release(annotation), self.settings.storage_timeout_s)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("could not release a revision", extra={"image_id": annotation.image_id, "error": repr(error)})

    async def _await_visible(self, wanted: ImageRecord, owner: Owner) -> ImageRecord | None:
        """Return the image once the read model has the revision, None after `annotation_wait_s`."""
        try:
            async with asyncio.timeout(self.settings.annotation_wait_s):
                while True:
                    known = await self.read_model.get(wanted.image_id)
                    if known is not None and known.owner == owner and known.revision >= wanted.revision:
                        return await self.lookup.accepted(wanted.image_id, owner)
                    await asyncio.sleep(_POLL_S)
        except (DependencyUnavailable, TimeoutError):
            return None


def merge_patch(target: JsonValue, patch: JsonValue) -> JsonValue:
    """Return a value with a patch applied (RFC 7396 section 2)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def _described(record: ImageRecord, base: str) -> Response:
    content = image_details(record, base).model_dump_json(exclude_none=True).encode()
    headers = {"ETag": tag_of(content), "Cache-Control": "private, no-cache"}
    return Response(content, media_type=JSON, headers=headers)
