"""API keys over HTTP, for operators: create, list, revoke. A key's secret is returned once, at creation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from fastapi import Request

from gateway.access.api_keys import ApiKey, ApiKeys, TooManyKeys
from gateway.access.dependencies import Who
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.json_bodies import described, read_json
from gateway.http.problems import Problem, documented
from gateway.settings import GatewaySettings
from schemas.http.keys import KeyCreated, KeyList, KeyView, NewKey
from schemas.http.problems import ProblemCode, ProblemItem
from streams.concurrency.timeouts import bounded
from streams.object_store.protocol import FileStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AdminKeys:
    """The API key endpoints."""

    settings: GatewaySettings
    files: FileStore

    def routes(self) -> Routes:
        """Return the routes."""
        routes = Routes(
            "/api/v1/admin/keys",
            tags=["admin"],
            responses=documented(ProblemCode.UNAUTHORIZED, ProblemCode.FORBIDDEN, ProblemCode.DEPENDENCY_UNAVAILABLE),
        )
        routes.add_api_route(
            "",
            self.create,
            methods=["POST"],
            status_code=201,
            dependencies=[requires(Scope.ADMIN)],
            summary="Create an API key",
            response_model_exclude_none=True,
            openapi_extra=described(NewKey),
            responses=documented(ProblemCode.INVALID_FIELD, ProblemCode.TOO_MANY_KEYS),
        )
        routes.add_api_route(
            "",
            self.keys,
            dependencies=[requires(Scope.ADMIN)],
            summary="List API keys",
            response_model_exclude_none=True,
        )
        routes.add_api_route(
            "/{key_id}",
            self.revoke,
            methods=["DELETE"],
            dependencies=[requires(Scope.ADMIN)],
            summary="Revoke an API key",
            response_model_exclude_none=True,
            responses=documented(ProblemCode.NOT_FOUND),
        )
        return routes

    async def create(self, request: Request, identity: Who) -> KeyCreated:
        """Create a key and return its secret, once: only a hash of it is stored."""
        requested = await read_json(request, NewKey, self.settings)
        if requested.expires_at is not None and requested.expires_at <= datetime.now(UTC):
            item = ProblemItem(field="expires_at", detail="must be in the future")
            raise Problem(ProblemCode.INVALID_FIELD, f"{item.field}: {item.detail}", (item,))
        try:
            key, secret = await bounded(ApiKeys(self.files).create(requested), self.settings.storage_timeout_s)
        except TooManyKeys as error:
            raise Problem(ProblemCode.TOO_MANY_KEYS, f"The key was not created: {error}.") from None
        log.info("API key created", key_id=key.id, owner=key.owner, scopes=sorted(key.scopes), by=identity.name)
        return KeyCreated(**view(key).model_dump(), key=secret)

    async def keys(self) -> KeyList:
        """List keys without their secrets, oldest first, including expired and revoked ones."""
        found = await bounded(ApiKeys(self.files).all(), self.settings.storage_timeout_s)
        keys = sorted((key for _, key in found.values()), key=lambda key: (key.created_at, key.id))
        return KeyList(keys=tuple(map(view, keys)))

    async def revoke(self, key_id: str, identity: Who) -> KeyView:
        """Revoke a key permanently; every gateway rejects it within seconds. Idempotent."""
        key = await bounded(ApiKeys(self.files).revoke(key_id), self.settings.storage_timeout_s)
        if key is None:
            raise Problem(ProblemCode.NOT_FOUND, "No API key has this id.")
        log.info("API key revoked", key_id=key.id, owner=key.owner, by=identity.name)
        return view(key)


def view(key: ApiKey) -> KeyView:
    """Return the public view of a key."""
    return KeyView.model_validate({**key.model_dump(), "scopes": sorted(key.scopes), "state": key.state})
