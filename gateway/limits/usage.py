"""Usage endpoint: what remains of the caller's rate limits and quotas."""

from __future__ import annotations

from gateway.access.dependencies import Who
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.problems import documented
from gateway.limits.quotas import Quotas
from gateway.limits.rate_limits import Limits
from schemas.http.problems import ProblemCode
from schemas.http.usage import Amount, LimitView, UsageView


def usage_routes(limits: Limits, quotas: Quotas) -> Routes:
    """Return the usage route."""
    routes = Routes("/api/v1/usage", tags=["ingest"])

    async def usage(identity: Who) -> UsageView:
        """Return the caller's rate limits and the owner's quotas, with what remains of each."""
        used = await quotas.usage(identity.owner) if quotas.any else None
        return UsageView(
            images=Amount(used=used and used.images, allowed=quotas.settings.images),
            bytes=Amount(used=used and used.bytes, allowed=quotas.settings.bytes),
            limits=tuple(
                LimitView(
                    name=known.limit.policy,
                    limit=known.limit.item.amount,
                    window_s=known.limit.item.get_expiry(),
                    remaining=known.remaining,
                    reset_s=known.reset_s,
                )
                for known in await limits.statuses(identity)
            ),
        )

    routes.add_api_route(
        "",
        usage,
        methods=["GET"],
        dependencies=[requires(Scope.READ)],
        summary="Get remaining rate limits and quotas",
        responses=documented(ProblemCode.DEPENDENCY_UNAVAILABLE),
    )
    return routes
