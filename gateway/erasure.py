"""Erasure: what an owner can check of a deletion, from the 202 on and for good."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import APIRouter

from gateway.guard import Caller
from gateway.lookup import Lookup
from gateway.problems import documented
from schemas.erasures import Erasure
from schemas.http_api import ErasureView, ProblemCode
from streams.erasures import objects_of
from streams.files import FileStore
from streams.receipts import receipt_keys


@dataclass(frozen=True, slots=True)
class ErasureCheck:
    """The endpoint that tells of a deletion."""

    files: FileStore
    lookup: Lookup

    def routes(self) -> APIRouter:
        """Return the route."""
        router = APIRouter(prefix="/api/v1/images", tags=["query"])
        router.add_api_route(
            "/{image_id}/erasure",
            self.erasure,
            summary="What a deletion has removed",
            response_model_exclude_none=True,
            responses=documented(ProblemCode.NOT_FOUND, ProblemCode.DEPENDENCY_UNAVAILABLE),
        )
        return router

    async def erasure(self, image_id: str, owner: Caller) -> ErasureView:
        """The receipt of a deletion, and a count made now of what is still stored of the image."""
        found = await self.lookup.erasure(image_id, owner)
        async with asyncio.timeout(self.lookup.settings.storage_timeout_s):
            remaining = await self._remaining(found)
        return ErasureView(
            image_id=found.image_id,
            state=found.state,
            requested_at=found.requested_at,
            erased_at=found.erased_at,
            finished_at=found.finished_at,
            removed=found.removed,
            remaining=remaining,
            leaves_log_by=found.leaves_log_by,
        )

    async def _remaining(self, erasure: Erasure) -> int:
        objects = [key async for key in objects_of(self.files, erasure.image_id, erasure.generation)]
        receipts = [key async for key in receipt_keys(self.files, erasure.image_id)]
        return len(objects) + len(receipts)
