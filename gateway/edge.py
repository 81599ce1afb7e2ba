"""The edge of every app: correlation ids, metrics, safe headers, and an answer to our own bugs."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.resources import files

import structlog
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.contract import complete
from gateway.cors import allow_origins
from gateway.guard import identified
from gateway.limits import LimitHeaders, counted
from gateway.methods import Methods
from gateway.openapi_security import secure
from gateway.overload import Overload
from gateway.parameters import known_parameters
from gateway.parts import IngestParts
from gateway.problems import bug, handle_problems
from gateway.settings import GatewaySettings
from streams.metrics import HTTP_REQUESTS, HTTP_SECONDS
from streams.tracing import child_of

_CORRELATION_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")
API_VERSION = "1.0.0"  # of the API, not of the software: the document changes when the API does
_TAGS = [
    {"name": "ingest", "description": "Images in: by upload or by URL."},
    {"name": "query", "description": "Images out: status, results, sizes, bytes, deletion."},
    {"name": "search", "description": "By meaning, by text, by what is on them, by likeness."},
    {"name": "features", "description": "The CLIP vectors of images, and nothing else: nothing is kept."},
    {"name": "operation", "description": "How the system does."},
    {"name": "admin", "description": "For operators: run stages again, pause agents."},
]
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"})


class Edge:
    """ASGI middleware around an app; streams pass through untouched."""

    def __init__(self, app: ASGIApp, *, name: str) -> None:
        self._app = app
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-correlation-id", "")
        correlation_id = asked if _CORRELATION_ID.match(asked) else str(uuid.uuid4())
        state = scope.setdefault("state", {})
        state["correlation_id"] = correlation_id
        state["traceparent"] = child_of(headers.get("traceparent"))
        status, answered = 0, 0.0

        async def send_on(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                if found.get("content-type", "").startswith("text/event-stream"):
                    answered = time.perf_counter()  # a stream has answered when it begins
                found["X-Correlation-ID"] = correlation_id
                found.setdefault("X-Content-Type-Options", "nosniff")
                found.setdefault("Cache-Control", "no-store")
            await send(message)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
            try:
                await self._app(scope, receive, send_on)
            except Exception as error:
                answer = bug(Request(scope), error)
                if status:
                    raise  # too late to answer: the server cuts the connection, which the client notices
                await answer(scope, receive, send_on)
            finally:
                # The route's template, never the path: no ids in labels.
                route = getattr(scope.get("route"), "path", "unmatched")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                HTTP_REQUESTS.labels(self._name, route, method, str(status or 499)).inc()
                HTTP_SECONDS.labels(self._name, route).observe((answered or time.perf_counter()) - started)


class GatewayApp(FastAPI):
    """FastAPI whose OpenAPI document tells the truth about errors."""

    def openapi(self) -> dict[str, object]:
        """Return the OpenAPI document."""
        if not self.openapi_schema:
            document, self.openapi_schema = super().openapi(), None  # there for others when it is whole
            anonymous = getattr(self.state.authenticator, "anonymous", None)
            self.openapi_schema = secure(complete(document), anonymous=anonymous)
        return self.openapi_schema


def new_app(name: str, title: str, description: str, settings: GatewaySettings, parts: IngestParts) -> FastAPI:
    """Return an app without routes that behaves as all of ours do."""
    app = GatewayApp(
        title=title,
        description=description,
        version=API_VERSION,
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
        openapi_tags=_TAGS,
        dependencies=[Depends(identified), Depends(known_parameters), Depends(counted)],
        redirect_slashes=False,  # one resource has one address
    )
    app.state.authenticator = parts.authenticator
    app.state.limits = parts.limits
    app.state.parameters = {}  # what each operation reads, noted by gateway.parameters
    app.state.origins = frozenset(settings.cors_origins)
    _serve_document(app)
    _serve_docs(app)
    app.add_middleware(LimitHeaders, limits=parts.limits)
    app.add_middleware(Methods, whole=app)
    app.add_middleware(
        Overload,
        most_questions=settings.most_questions,
        most_late_s=settings.most_late_s,
        retry_after_s=settings.retry_after_s,
    )
    app.add_middleware(Edge, name=name)
    allow_origins(app, settings.cors_origins)
    handle_problems(app, retry_after_s=settings.retry_after_s)
    app.include_router(_metrics_routes())
    return app


def _serve_document(app: FastAPI) -> None:
    """Serve the document at /openapi.json. To make it takes a second, in which others are answered."""
    making = asyncio.Lock()

    async def document(_request: Request) -> JSONResponse:
        async with making:
            return JSONResponse(await asyncio.to_thread(app.openapi))

    app.add_route("/openapi.json", document, include_in_schema=False)


def _serve_docs(app: FastAPI) -> None:
    """Serve the API's page at /docs with scripts of our own: it works without the internet, and tells nobody of it."""
    folder = files("fastapi_offline") / "static"
    app.mount("/docs-assets", StaticFiles(directory=str(folder)), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/docs-assets/swagger-ui-bundle.js",
            swagger_css_url="/docs-assets/swagger-ui.css",
            swagger_favicon_url="/docs-assets/favicon.png",
        )


def version() -> str:
    """Return the installed version of Darkroom."""
    try:
        return installed_version("darkroom")
    except PackageNotFoundError:
        return "0"


def base_url(request: Request, settings: GatewaySettings) -> str:
    """Return what the URLs in answers begin with, without a slash at the end."""
    return (settings.public_url or str(request.base_url)).rstrip("/")


def traceparent_of(request: Request) -> str:
    """Return the trace this request belongs to."""
    return str(request.state.traceparent)


def _metrics_routes() -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
    def metrics() -> Response:
        """Every metric of this process."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return router
