"""Annotations: what is known of one image, and what its owner says of it anew: tags, category, metadata.

A change is a fact in the log, as everything that is true of an image is: a read model that is built anew has it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import JsonValue

from gateway.access.dependencies import Caller
from gateway.access.identity import Scope
from gateway.access.permissions import requires
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
from schemas.values import Owner, Profile
from streams import topics
from streams.concurrency.timeouts import bounded
from streams.errors import DeliveryUnconfirmed, DependencyUnavailable
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord

log = logging.getLogger(__name__)

MERGE_PATCH = "application/merge-patch+json"
_MEDIA_TYPES = (MERGE_PATCH, JSON)
_TRIES = 10  # against others who change the same image at the same time
_LOOK_AGAIN_S = 0.05

IfMatch = Annotated[
    str | None,
    Header(description="change the image only if its entity tag, as `/metadata` or a PATCH said it, is this"),
]


@dataclass(frozen=True, slots=True)
class Annotations:
    """The endpoints that describe an image, and let its owner do so."""

    settings: GatewaySettings
    events: EventSink
    read_model: ReadModel
    lookup: Lookup
    revisions: Revisions

    def routes(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(prefix="/api/v1/images", tags=["query"])
        lost = (ProblemCode.NOT_FOUND, ProblemCode.GONE, ProblemCode.DEPENDENCY_UNAVAILABLE)
        etag = {"ETag": {**TAGGED, "description": "of this description; for If-None-Match and If-Match"}}
        router.add_api_route(
            "/{image_id}/metadata",
            self.details,
            response_model=ImageDetails,
            dependencies=[requires(Scope.READ)],
            summary="What is known of an image",
            openapi_extra=CONDITIONAL,
            responses={200: {"headers": etag}, 304: {"description": "you have it already"}, **documented(*lost)},
        )
        router.add_api_route(
            "/{image_id}",
            self.change,
            methods=["PATCH"],
            response_model=ImageDetails,
            dependencies=[requires(Scope.WRITE)],
            summary="Change tags, category and metadata",
            openapi_extra=described(AnnotationPatch, media_types=_MEDIA_TYPES),
            responses={
                200: {"headers": etag, "description": "changed, and seen by every answer"},
                202: {"headers": etag, "model": ImageDetails, "description": "changed, and soon seen by every answer"},
                **documented(
                    *lost,
                    ProblemCode.PRECONDITION_FAILED,
                    ProblemCode.INVALID_METADATA,
                    ProblemCode.INVALID_FIELD,
                    ProblemCode.UNKNOWN_FIELD,
                    ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                    ProblemCode.OVERLOADED,
                ),
            },
        )
        return router

    async def details(self, image_id: str, request: Request, owner: Caller) -> Response:
        """Everything but where text and objects are. Of an image nobody has worked on yet, what was said with it."""
        record = await self.lookup.accepted(image_id, owner)
        return answered(request, image_details(record, base_url(request, self.settings)))

    async def change(self, image_id: str, request: Request, owner: Caller, if_match: IfMatch = None) -> Response:
        """A JSON Merge Patch: what is absent stays, null takes away. 200 when every answer shows it, or 202 when it is
        certain and answers show it soon. With `If-Match`, nobody's change in between is lost.
        """
        patch = await read_json(request, AnnotationPatch, self.settings, media_types=_MEDIA_TYPES)
        if patch.context is not None:
            check_metadata(patch.context, max_bytes=self.settings.max_json_bytes)  # not deeper than may be merged
        base = base_url(request, self.settings)
        wanted, said = await self._said(image_id, owner, patch, if_match, base)
        if said is not None:
            await self._announce(said, traceparent_of(request))
        seen = await self._seen(wanted, owner)
        answer = _described(seen or wanted, base)
        if seen is None:
            answer.status_code = 202
            answer.headers["Location"] = f"{base}/api/v1/images/{image_id}/metadata"
            answer.headers["Retry-After"] = str(self.settings.poll_after_s)
        return answer

    async def _said(
        self, image_id: str, owner: Owner, patch: AnnotationPatch, if_match: str | None, base: str
    ) -> tuple[ImageRecord, ImageAnnotated | None]:
        """Return the image as it will be, and the revision that says so; None if the read model shows it already."""
        for _ in range(_TRIES):
            known, pending = await self._newest(image_id, owner)
            if if_match is not None and not matches(if_match, _described(known, base).headers["etag"]):
                raise Problem(ProblemCode.PRECONDITION_FAILED, "The image is not what If-Match names; look again.")
            changes = self._changes(known, patch)
            if not changes:
                return known, pending  # said again: whoever said it first may have died before it was in the log
            wanted = known.model_copy(update={**changes, "revision": known.revision + 1})
            said = ImageAnnotated(
                image_id=image_id,
                owner=owner,
                generation=known.generation,
                profile=Profile(stages=known.required),
                revision=wanted.revision,
                tags=wanted.tags,
                category=wanted.category,
                context=wanted.context,
            )
            if await self._take(said):
                return wanted, said
        detail = "Others change this image all the time. Nothing was changed; try again."
        raise Problem(ProblemCode.OVERLOADED, detail, headers={"Retry-After": str(self.settings.retry_after_s)})

    async def _newest(self, image_id: str, owner: Owner) -> tuple[ImageRecord, ImageAnnotated | None]:
        """Return an image with its newest revision; and that one, if the read model has not seen it."""
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
            assert isinstance(merged, dict)  # noqa: S101 - a patch that is an object gives one
            wanted["context"] = check_metadata(merged, max_bytes=self.settings.max_metadata_bytes)
        return {name: value for name, value in wanted.items() if value != getattr(known, name)}

    async def _take(self, said: ImageAnnotated) -> bool:
        try:
            if not await bounded(self.revisions.take(said), self.settings.storage_timeout_s):
                return False
            # A deletion that was accepted meanwhile has looked for the image's objects before this one was there.
            await self.lookup.accepted(said.image_id, Owner(said.owner))
        except BaseException:
            await asyncio.shield(self._give_back(said))
            raise
        return True

    async def _announce(self, said: ImageAnnotated, traceparent: str) -> None:
        try:
            sent = self.events.send(topics.FACTS, said, traceparent=traceparent)
            await bounded(sent, self.settings.delivery_timeout_s)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("an annotation was not confirmed", extra={"image_id": said.image_id, "error": repr(error)})
            if isinstance(error, DependencyUnavailable) and not isinstance(error, DeliveryUnconfirmed):
                await asyncio.shield(self._give_back(said))
                raise unavailable("Kafka", retry_after_s=self.settings.retry_after_s) from error
            # It may be in the log: the number stays taken, and the next change is built on this one.
            detail = (
                "Kafka did not confirm the change in time. It may come about all the same; asking again is harmless."
            )
            headers = {"Retry-After": str(self.settings.retry_after_s)}
            raise Problem(ProblemCode.DEPENDENCY_UNAVAILABLE, detail, headers=headers) from error
        try:
            await bounded(self.revisions.forget_before(said), self.settings.storage_timeout_s)
        except (DependencyUnavailable, TimeoutError) as error:  # the next change removes them
            log.warning("old revisions could not be removed", extra={"image_id": said.image_id, "error": repr(error)})

    async def _give_back(self, said: ImageAnnotated) -> None:
        try:
            await bounded(self.revisions.give_back(said), self.settings.storage_timeout_s)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("a revision could not be given back", extra={"image_id": said.image_id, "error": repr(error)})

    async def _seen(self, wanted: ImageRecord, owner: Owner) -> ImageRecord | None:
        """Return the image when the read model shows the revision, None if it does not in time."""
        try:
            async with asyncio.timeout(self.settings.annotation_wait_s):
                while True:
                    known = await self.read_model.get(wanted.image_id)
                    if known is not None and known.owner == owner and known.revision >= wanted.revision:
                        return await self.lookup.accepted(wanted.image_id, owner)
                    await asyncio.sleep(_LOOK_AGAIN_S)
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
