"""Building of apps: the dependencies, middleware, error handlers and routes that every app has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.resources import files

from fastapi import Depends, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway.access.dependencies import identified
from gateway.access.permissions import permissions_of, public
from gateway.access.refusal_pacing import RefusalPacing
from gateway.access.routes import Routes
from gateway.apps.components import IngestComponents
from gateway.apps.page_origins import own_pages
from gateway.apps.unknown_parameters import known_parameters
from gateway.http.cors import allow_origins
from gateway.http.load_shedding import Overload
from gateway.http.method_routing import Methods
from gateway.http.middleware import Edge
from gateway.http.problems import handle_problems
from gateway.limits.rate_limits import LimitHeaders, counted
from gateway.openapi.document import complete
from gateway.openapi.security import secure
from gateway.settings import GatewaySettings

API_VERSION = "1.0.0"  # of the API, not of the software: the document changes when the API does
_TAGS = [
    {"name": "ingest", "description": "Submit images, by upload or by URL."},
    {"name": "query", "description": "Status, results, sizes, bytes and deletion of images."},
    {"name": "search", "description": "Search by meaning, text, labels or a similar image."},
    {"name": "features", "description": "CLIP vectors of images; nothing is stored."},
    {"name": "operation", "description": "Health, statistics and metrics."},
    {"name": "admin", "description": "For operators: reprocessing, agents, dead letters, API keys."},
]


class GatewayApp(FastAPI):
    """FastAPI with a completed OpenAPI document: errors, headers, examples, security."""

    def openapi(self) -> dict[str, object]:
        """Return the OpenAPI document."""
        if not self.openapi_schema:
            document, self.openapi_schema = super().openapi(), None  # cached once it is complete
            anonymous = getattr(self.state.authenticator, "anonymous", None)
            permissions = permissions_of(self)
            self.openapi_schema = secure(complete(document, permissions), permissions, anonymous=anonymous)
        return self.openapi_schema


def new_app(
    name: str,
    title: str,
    description: str,
    settings: GatewaySettings,
    components: IngestComponents,
    routes: Sequence[Routes],
) -> FastAPI:
    """Return an app of these routes, and those every app has. Raises UndeclaredRoute for a route without permission."""
    app = GatewayApp(
        title=title,
        description=description,
        version=API_VERSION,
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
        openapi_tags=_TAGS,
        dependencies=[Depends(identified), Depends(own_pages), Depends(known_parameters), Depends(counted)],
        redirect_slashes=False,  # one resource has one address
    )
    app.state.authenticator = components.authenticator
    app.state.refusal_pacing = RefusalPacing()
    app.state.limits = components.limits
    app.state.parameters = {}  # of each operation; filled by gateway.apps.unknown_parameters
    app.state.origins = frozenset(settings.cors_origins)
    _serve_document(app)
    _serve_docs(app)
    app.add_middleware(LimitHeaders, limits=components.limits)
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
    for declared in (_metrics_routes(), *routes):
        declared.register(app)
    permissions_of(app)
    return app


def _serve_document(app: FastAPI) -> None:
    """Serve the document at /openapi.json. It is generated in a thread, which takes a second."""
    generating = asyncio.Lock()

    @app.get("/openapi.json", summary="The API as OpenAPI 3.1", include_in_schema=False, dependencies=[public()])
    async def document() -> JSONResponse:
        async with generating:
            return JSONResponse(await asyncio.to_thread(app.openapi))


def _serve_docs(app: FastAPI) -> None:
    """Serve Swagger UI at /docs with bundled scripts: it works offline and sends no requests to other hosts."""
    folder = files("fastapi_offline") / "static"
    app.mount("/docs-assets", StaticFiles(directory=str(folder)), name="docs-assets")

    @app.get("/docs", summary="The API as a page", include_in_schema=False, dependencies=[public()])
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=app.title,
            swagger_js_url="/docs-assets/swagger-ui-bundle.js",
            swagger_css_url="/docs-assets/swagger-ui.css",
            swagger_favicon_url="/docs-assets/favicon.png",
        )


def _metrics_routes() -> Routes:
    routes = Routes(tags=["operation"])

    @routes.get("/metrics", response_class=Response, summary="Metrics for Prometheus", dependencies=[public()])
    def metrics() -> Response:
        """All metrics of this process."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return routes
