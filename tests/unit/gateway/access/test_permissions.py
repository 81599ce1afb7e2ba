"""Permissions: each route declares one, and the gateway enforces it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, params
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.responses import PlainTextResponse

from gateway.access.identity import Identity, Scope
from gateway.access.permissions import UndeclaredRoute, permissions_of, public, requires
from gateway.access.routes import Routes
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.apps.factory import new_app
from gateway.apps.ingest import ingest_app
from gateway.apps.query import query_app
from gateway.http.problems import handle_problems
from schemas.http.reconciliation import ReconcileReport
from schemas.values import DEFAULT_OWNER
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Sink, StubReadiness, client_of, refused, settings
from tests.support.permissions import PERMISSIONS, PUBLIC


class Bearer:
    """An authenticator that takes the scopes from the Authorization header."""

    async def identify(self, request: Request) -> Identity:
        named = request.headers.get("authorization", "").split()
        return Identity(DEFAULT_OWNER, frozenset(map(Scope, named)), "tester")


class NoReconciling:
    """Fails if a request reaches it."""

    async def reconcile(self, *, dry_run: bool) -> ReconcileReport:
        raise AssertionError("the request should be refused")


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[QueryComponents]:
    """The components of an app, real ones in folders."""
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
            reconciling=NoReconciling(),
        )


def declared(*dependencies: params.Depends) -> Routes:
    """Return one route of these dependencies, which answers 200."""
    routes = Routes()

    @routes.get("/added", dependencies=dependencies)
    async def added() -> str:
        return "answered"

    return routes


def test_routes_declare_the_expected_permissions(parts: QueryComponents) -> None:
    """The apps' routes declare exactly the scopes of the written table; the embedded app has all of them."""
    embedded, ingest, query = (
        dict(permissions_of(make(settings(), parts))) for make in (embedded_app, ingest_app, query_app)
    )
    assert embedded == PERMISSIONS
    assert ingest | query | {("GET", "/"): PUBLIC} == PERMISSIONS
    assert all(PERMISSIONS[row] == scope for app in (ingest, query) for row, scope in app.items())


def test_an_app_with_an_undeclared_route_is_not_built(parts: QueryComponents) -> None:
    """A route without a permission stops the app from being built, and so do two permissions on one route."""
    with pytest.raises(UndeclaredRoute, match="GET /added"):
        new_app("test", "Test", "", settings(), parts, [declared()])
    with pytest.raises(UndeclaredRoute, match="GET /added"):
        new_app("test", "Test", "", settings(), parts, [declared(public(), requires(Scope.READ))])
    assert ("GET", "/added") in permissions_of(new_app("test", "Test", "", settings(), parts, [declared(public())]))


def test_a_route_outside_the_checks_is_found(parts: QueryComponents) -> None:
    """A plain Starlette route has no dependencies, so it is refused; only static files may be mounted."""
    app = ingest_app(settings(), parts)
    app.router.add_route("/added", lambda request: PlainTextResponse("answered"))
    with pytest.raises(UndeclaredRoute, match="/added"):
        permissions_of(app)


@pytest.mark.parametrize("scopes", ["", " ".join(Scope)])
async def test_an_undeclared_route_answers_403(parts: QueryComponents, scopes: str) -> None:
    """A route added later without a permission denies every caller, including one with every scope."""
    app = ingest_app(settings(), parts)
    declared().register(app)
    async with client_of(app) as client:
        refused(await client.get("/added", headers={"Authorization": scopes}), 403, "forbidden")


async def test_a_declared_route_answers_403_in_an_app_without_the_checks() -> None:
    """A declaration does not open a route in an app that lacks the dependency `identified`."""
    app = FastAPI()
    handle_problems(app, retry_after_s=1)
    declared(requires(Scope.READ)).register(app)
    async with client_of(app) as client:
        assert (await client.get("/added")).status_code == 403


@pytest.mark.parametrize(("method", "path"), [row for row, scope in PERMISSIONS.items() if scope is not None])
async def test_without_its_scope_an_endpoint_answers_403(parts: QueryComponents, method: str, path: str) -> None:
    """A caller with every other scope is refused before anything is looked up."""
    others = " ".join(scope for scope in Scope if scope is not PERMISSIONS[method, path])
    async with client_of(embedded_app(settings(), parts)) as client:
        answer = await client.request(method, path, headers={"Authorization": others})
        if method == "HEAD":  # has no body
            assert answer.status_code == 403
        else:
            refused(answer, 403, "forbidden")
        assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


def test_no_body_is_read_before_the_caller_is_identified(parts: QueryComponents) -> None:
    """No route has a body parameter: FastAPI would read the body before its dependencies run."""
    app = embedded_app(settings(), parts)
    routes = [context.original_route for context in iter_route_contexts(app.routes)]
    found = [route for route in routes if isinstance(route, APIRoute)]
    assert [route.path for route in found if route.body_field is not None] == []
    assert len(found) > len(PERMISSIONS) / 2
