"""Erasure report: the state of a deletion, for its owner; available permanently from the 202 on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gateway.access.dependencies import Caller
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.problems import documented
from gateway.images.lookup import Lookup
from schemas.http.problems import ProblemCode
from schemas.http.submissions import ErasureView
from schemas.stored.erasures import Erasure
from streams.object_store.protocol import FileStore
from streams.object_store.receipts import receipt_keys
from streams.object_store.tombstones import objects_of


@dataclass(frozen=True, slots=True)
class ErasureCheck:
    """The erasure report endpoint."""

    files: FileStore
    lookup: Lookup

    def routes(self) -> Routes:
        """Return the route."""
        routes = Routes("/api/v1/images", tags=["query"])
        routes.add_api_route(
            "/{image_id}/erasure",
            self.erasure,
            dependencies=[requires(Scope.READ)],
            summary="Get the state of a deletion",
            response_model_exclude_none=True,
            responses=documented(ProblemCode.NOT_FOUND, ProblemCode.DEPENDENCY_UNAVAILABLE),
        )
        return routes

    async def erasure(self, image_id: str, owner: Caller) -> ErasureView:
        """Return the receipt of a deletion, and the current number of stored objects of the image."""
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
