"""Reconciliation on demand, for operators: finds overdue work and missing objects, and repairs them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.protocols import Reconciling
from schemas.http.reconciliation import ReconcileReport


def add_reconcile(router: APIRouter, reconciling: Reconciling) -> None:
    """Add the route to the admin router.

    In a router of its own the route would lack its full path, which permissions and metrics use.
    """

    @router.post("/reconcile", dependencies=[requires(Scope.ADMIN)], summary="Find and resend overdue work")
    async def reconcile(
        dry_run: Annotated[bool, Query(description="change nothing; report what would be done")] = True,
    ) -> ReconcileReport:
        """Check every unfinished image and the objects of every completed one. Duration grows with their number."""
        return await reconciling.reconcile(dry_run=dry_run)
