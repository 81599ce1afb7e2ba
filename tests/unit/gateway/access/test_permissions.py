"""What each endpoint asks of its caller: one table, complete, and obeyed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import Mount

from gateway.access.identity import Identity, Scope
from gateway.access.permissions import PERMISSIONS
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.apps.ingest import ingest_app
from gateway.apps.query import query_app
from schemas.http.reconciliation import ReconcileReport
from schemas.values import DEFAULT_OWNER
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Sink, StubReadiness, client_of, refused, settings

NOT_OURS = frozenset(
    {("GET", "/openapi.json"), ("HEAD", "/openapi.json")}
)  # the framework's, and not through the guard


class Bearer:
    """An authenticator that believes whoever names their scopes."""

    async def identify(self, request: Request) -> Identity:
        named = request.headers.get("authorization", "").split()
        return Identity(DEFAULT_OWNER, frozenset(map(Scope, named)), "tester")


class Looks:
    """Has nothing to reconcile."""

    async def reconcile(self, *, dry_run: bool) -> ReconcileReport:
        raise AssertionError("nobody may get here")


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[QueryComponents]:
    """The parts of an app, real ones in folders."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        yield QueryComponents(
            files=files,
            events=Sink(),
            readiness=StubReadiness(),
            read_model=read_model,
            authenticator=Bearer(),
            reconciling=Looks(),
        )


def endpoints(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Walk the method and path template of everything an app answers, but the files of the docs page."""
    for context in iter_route_contexts(app.routes):
        if not isinstance(context.original_route, Mount):
            for method in set(context.methods or ()):
                yield method, str(context.path)


def test_every_endpoint_has_a_row_and_every_row_an_endpoint(parts: QueryComponents) -> None:
    """An endpoint that is added without saying who may use it fails here; so does a row that nothing answers to."""
    apps = (embedded_app(settings(), parts), ingest_app(settings(), parts), query_app(settings(), parts))
    found = {endpoint for app in apps for endpoint in endpoints(app)}
    assert found - set(PERMISSIONS) - NOT_OURS == set()
    assert set(PERMISSIONS) - found == set()


@pytest.mark.parametrize(("method", "path"), [row for row, scope in PERMISSIONS.items() if scope is not None])
async def test_without_its_scope_an_endpoint_answers_403(parts: QueryComponents, method: str, path: str) -> None:
    """Whoever has every scope but the one an endpoint asks for is refused before anything is looked up."""
    others = " ".join(scope for scope in Scope if scope is not PERMISSIONS[method, path])
    async with client_of(embedded_app(settings(), parts)) as client:
        answer = await client.request(method, path, headers={"Authorization": others})
        if method == "HEAD":  # has no body
            assert answer.status_code == 403
        else:
            refused(answer, 403, "forbidden")
        assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


def test_no_body_is_read_before_its_sender_is_known(parts: QueryComponents) -> None:
    """No endpoint leaves its body to the framework, which reads all of it before anybody asks who sends it."""
    app = embedded_app(settings(), parts)
    routes = [context.original_route for context in iter_route_contexts(app.routes)]
    ours = [route for route in routes if isinstance(route, APIRoute)]
    assert [route.path for route in ours if route.body_field is not None] == []
    assert len(ours) > len(PERMISSIONS) / 2
