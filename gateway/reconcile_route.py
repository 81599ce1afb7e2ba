"""Looking over everything at once, for whoever runs the system: what is overdue, what is gone, what was done."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.ports import Reconciling
from schemas.reconciliation import ReconcileReport


def reconcile_routes(reconciling: Reconciling) -> APIRouter:
    """Return the routes, to be mounted below /api/v1/admin."""
    router = APIRouter()

    @router.post("/reconcile", summary="Find what is overdue, and lead it on")
    async def reconcile(
        dry_run: Annotated[bool, Query(description="change nothing, and say what would be done")] = True,
    ) -> ReconcileReport:
        """Every unfinished image, every object of a completed one. Takes as long as there are many."""
        return await reconciling.reconcile(dry_run=dry_run)

    return router
