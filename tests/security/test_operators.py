"""The admin API of keys: creation, listing and revocation over HTTP, logged."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from structlog.testing import capture_logs

from gateway.access.api_keys import ApiKeys
from gateway.access.authenticator import open_authenticator
from gateway.access.identity import Identity, Scope
from gateway.access.settings import AuthSettings
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from schemas.http.keys import KeyCreated, KeyList, KeyState, KeyView
from streams.object_store.protocol import FileStore
from streams.read_model.factory import open_read_model
from streams.settings import QdrantSettings
from tests.security.authenticated_gateway import ADMIN_TOKEN, authenticated_gateway, created_key
from tests.support.gateway_components import Encoder, FaultyFiles, Sink, StubReadiness, refused, settings

KEYS = "/api/v1/admin/keys"


@dataclass
class AdminGateway:
    """An embedded gateway with an admin token."""

    client: httpx.AsyncClient
    store: FileStore
    asked: list[Identity] = field(default_factory=list)


@pytest.fixture
async def gateway(store: FileStore, tmp_path: Path) -> AsyncIterator[AdminGateway]:
    """Open the gateway on an address other than loopback."""
    async with (
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
        _open_gateway(store, read_model) as found,
    ):
        yield found


@asynccontextmanager
async def _open_gateway(store: FileStore, read_model: Any) -> AsyncIterator[AdminGateway]:
    own = settings(host="0.0.0.0", admin_token=ADMIN_TOKEN)
    asked: list[Identity] = []
    door = await open_authenticator(own, AuthSettings(), store)

    class Remembering:
        async def identify(self, request: Request) -> Identity:
            asked.append(await door.identify(request))
            return asked[-1]

    parts = QueryComponents(
        files=FaultyFiles(store),
        events=Sink(),
        read_model=read_model,
        encoder=Encoder(),
        readiness=StubReadiness(),
    )
    app = embedded_app(own, replace(parts, authenticator=Remembering()))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://darkroom.example", headers=headers) as client:
        yield AdminGateway(client, store, asked)


async def test_operators_create_list_and_revoke_keys(gateway: AdminGateway) -> None:
    """A key's secret is in one response only, and never in lists; a revoked key is listed as revoked, and refused."""
    asked = {"owner": "anna", "scopes": ["images:read"], "name": "reader", "limits": {"requests": "10/second"}}
    answer = await gateway.client.post(KEYS, json=asked)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    key = KeyCreated.model_validate_json(answer.content)
    assert (key.owner, key.scopes, key.name, key.state) == ("anna", (Scope.READ,), "reader", KeyState.ACTIVE)
    listed = await gateway.client.get(KEYS)
    assert [found.id for found in KeyList.model_validate_json(listed.content).keys] == [key.id]
    secret = key.key.split("_", 2)[2]
    for text in (secret, hashlib.sha256(secret.encode()).hexdigest(), "sha256"):
        assert text not in listed.text
    revoked = KeyView.model_validate_json((await gateway.client.delete(f"{KEYS}/{key.id}")).content)
    assert revoked.state is KeyState.REVOKED
    again = await gateway.client.delete(f"{KEYS}/{key.id}")
    assert KeyView.model_validate_json(again.content) == revoked
    for unknown in ("0" * 16, "x", f"{key.id}.json", "..%2Fjobs"):
        refused(await gateway.client.delete(f"{KEYS}/{unknown}"), 404, "not-found")
    async with authenticated_gateway(gateway.store) as ingest:
        await ingest.assert_rejected(key.key)


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({}, "owner"),
        ({"owner": "../anna"}, "owner"),
        ({"owner": "anna", "scopes": []}, "scopes"),
        ({"owner": "anna", "scopes": ["everything"]}, "scopes.0"),
        ({"owner": "anna", "name": "a\nb"}, "name"),
        ({"owner": "anna", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"owner": "anna", "expires_at": "2999-01-01T00:00:00"}, "expires_at"),
        ({"owner": "anna", "limits": {"uploads": "lots"}}, "limits.uploads"),
    ],
)
async def test_an_invalid_request_for_a_key_is_refused_with_its_field(
    gateway: AdminGateway, asked: dict[str, Any], where: str
) -> None:
    """An invalid request is refused with its field, and creates no key."""
    problem = refused(await gateway.client.post(KEYS, json=asked), 422, "invalid-field")
    assert [item.field for item in problem.errors] == [where]
    problem = refused(await gateway.client.post(KEYS, json={"owner": "anna", "secret": "x"}), 400, "unknown-field")
    assert [item.field for item in problem.errors] == ["secret"]
    assert not await ApiKeys(gateway.store).any()


async def test_a_key_may_have_the_scope_admin(gateway: AdminGateway) -> None:
    """An API key with the scope `admin` creates keys; one without is refused."""
    for scope, status in ((Scope.ADMIN, 201), (Scope.WRITE, 403)):
        key = await created_key(gateway.store, "anna", scopes={scope})
        answer = await gateway.client.post(KEYS, json={"owner": "bert"}, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status


async def test_operator_requests_and_refusals_are_logged(gateway: AdminGateway) -> None:
    """Each operator request and each refusal is logged with its caller, and without secrets."""
    key = await created_key(gateway.store, "anna", scopes={Scope.READ})
    with capture_logs() as logs:
        await gateway.client.post(KEYS, json={"owner": "bert"})
        await gateway.client.get(KEYS)
        await gateway.client.post(KEYS, json={"owner": "bert"}, headers={"Authorization": f"Bearer {key}"})
        await gateway.client.post(KEYS, json={"owner": "bert"}, headers={"Authorization": f"Bearer {key}x"})
        await gateway.client.post(KEYS, json={"owner": "bert"}, headers={"Authorization": ""})
    acts = [entry for entry in logs if entry["event"] == "operator request"]
    assert [(entry["method"], entry["path"], entry["by"]) for entry in acts] == [("POST", KEYS, "admin-token")]
    refusals = [entry for entry in logs if entry["event"] == "authentication refused"]
    assert [(entry["why"], entry["by"]) for entry in refusals] == [
        ("insufficient-scope", f"key:{key.split('_')[1]}"), ("invalid", None), ("invalid", None)
    ]  # fmt: skip
    assert key.split("_", 2)[2] not in str(logs)
    assert ADMIN_TOKEN not in str(logs)


async def test_the_document_has_the_scope_of_each_operation(gateway: AdminGateway) -> None:
    """The OpenAPI document has both ways to send credentials, and the scope of each operation."""
    document = (await gateway.client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    assert (schemes["apiKey"]["in"], schemes["apiKey"]["name"]) == ("header", "X-API-Key")
    upload = document["paths"]["/api/v1/images/upload"]["post"]["security"]
    assert upload == [{"bearer": ["images:write"]}, {"apiKey": ["images:write"]}]
    assert document["paths"]["/health/live"]["get"]["security"] == []
