"""API keys over HTTP, for operators: made, listed, revoked. The secret of a key is answered once, when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from fastapi import APIRouter, Request

from gateway.access.api_keys import ApiKey, ApiKeys, TooManyKeys
from gateway.access.dependencies import Who
from gateway.access.identity import Scope
from gateway.access.permissions import requires
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
    """The endpoints for keys."""

    settings: GatewaySettings
    files: FileStore

    def routes(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(
            prefix="/api/v1/admin/keys",
            tags=["admin"],
            responses=documented(ProblemCode.UNAUTHORIZED, ProblemCode.FORBIDDEN, ProblemCode.DEPENDENCY_UNAVAILABLE),
        )
        router.add_api_route(
            "",
            self.create,
            methods=["POST"],
            status_code=201,
            dependencies=[requires(Scope.ADMIN)],
            summary="Make an API key",
            response_model_exclude_none=True,
            openapi_extra=described(NewKey),
            responses=documented(ProblemCode.INVALID_FIELD, ProblemCode.TOO_MANY_KEYS),
        )
        router.add_api_route(
            "",
            self.keys,
            dependencies=[requires(Scope.ADMIN)],
            summary="Every API key",
            response_model_exclude_none=True,
        )
        router.add_api_route(
            "/{key_id}",
            self.revoke,
            methods=["DELETE"],
            dependencies=[requires(Scope.ADMIN)],
            summary="Revoke an API key",
            response_model_exclude_none=True,
            responses=documented(ProblemCode.NOT_FOUND),
        )
        return router

    async def create(self, request: Request, identity: Who) -> KeyCreated:
        """The answer has the key, which is shown this once: what is stored of it cannot be turned back."""
        asked = await read_json(request, NewKey, self.settings)
        if asked.expires_at is not None and asked.expires_at <= datetime.now(UTC):
            item = ProblemItem(field="expires_at", detail="it must be in the future")
            raise Problem(ProblemCode.INVALID_FIELD, f"{item.field}: {item.detail}", (item,))
        try:
            key, secret = await bounded(ApiKeys(self.files).create(asked), self.settings.storage_timeout_s)
        except TooManyKeys as error:
            raise Problem(ProblemCode.TOO_MANY_KEYS, f"No key was made: {error}.") from None
        log.info("an API key was made", key_id=key.id, owner=key.owner, scopes=sorted(key.scopes), by=identity.name)
        return KeyCreated(**view(key).model_dump(), key=secret)

    async def keys(self) -> KeyList:
        """Without their secrets, oldest first; those that have expired or were revoked too."""
        found = await bounded(ApiKeys(self.files).all(), self.settings.storage_timeout_s)
        keys = sorted((key for _, key in found.values()), key=lambda key: (key.created_at, key.id))
        return KeyList(keys=tuple(map(view, keys)))

    async def revoke(self, key_id: str, identity: Who) -> KeyView:
        """Every gateway refuses it within seconds, for good. Again is harmless."""
        key = await bounded(ApiKeys(self.files).revoke(key_id), self.settings.storage_timeout_s)
        if key is None:
            raise Problem(ProblemCode.NOT_FOUND, "There is no API key of that id.")
        log.info("an API key was revoked", key_id=key.id, owner=key.owner, by=identity.name)
        return view(key)


def view(key: ApiKey) -> KeyView:
    """Return a key as it is shown."""
    return KeyView.model_validate({**key.model_dump(), "scopes": sorted(key.scopes), "state": key.state})
