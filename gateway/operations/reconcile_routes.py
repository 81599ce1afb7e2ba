"""Looking over everything at once, for whoever runs the system: what is overdue, what is gone, what was done."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.protocols import Reconciling
from schemas.http.reconciliation import ReconcileReport


def add_reconcile(router: APIRouter, reconciling: Reconciling) -> None:
    """Add the route to those of the operators.

    A router included in another would not know its whole path, by which it is permitted and counted.
    """

    @router.post("/reconcile", dependencies=[requires(Scope.ADMIN)], summary="Find what is overdue, and lead it on")
    async def reconcile(
        dry_run: Annotated[bool, Query(description="change nothing, and say what would be done")] = True,
    ) -> ReconcileReport:
        """Every unfinished image, every object of a completed one. Takes as long as there are many."""
        return await reconciling.reconcile(dry_run=dry_run)
