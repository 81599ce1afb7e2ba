"""Reconciliation on demand, for operators: finds overdue work and missing objects, and repairs them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.protocols import Reconciling
from schemas.http.reconciliation import ReconcileReport


def add_reconcile(routes: Routes, reconciling: Reconciling) -> None:
    """Add the route to the admin routes."""

    async def reconcile(
        dry_run: Annotated[bool, Query(description="change nothing; report what would be done")] = True,
    ) -> ReconcileReport:
        """Check every unfinished image and the objects of every completed one. Duration grows with their number."""
        return await reconciling.reconcile(dry_run=dry_run)

    routes.add_api_route(
        "/reconcile",
        reconcile,
        methods=["POST"],
        dependencies=[requires(Scope.ADMIN)],
        summary="Find and resend overdue work",
    )
