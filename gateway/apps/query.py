"""Query: what became of an image. Needs the read model and the object store; Kafka only to delete."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from gateway.apps.components import QueryParts
from gateway.apps.factory import new_app
from gateway.images.annotations import Annotations
from gateway.images.delivery import Delivery
from gateway.images.erasure_report import ErasureCheck
from gateway.images.history import History
from gateway.images.lineage import ImageLineages
from gateway.images.listing import Listing
from gateway.images.lookup import Lookup
from gateway.images.revisions import Revisions
from gateway.images.routes import Images
from gateway.live.routes import Live
from gateway.operations.admin_routes import Admin
from gateway.operations.api_key_routes import AdminKeys
from gateway.operations.dead_letter_routes import AdminLetters
from gateway.operations.failures import Failures
from gateway.operations.health import health_routes
from gateway.operations.statistics import HealthStatistics
from gateway.search.features import FeatureExtraction
from gateway.search.routes import Search
from gateway.settings import GatewaySettings
from gateway.uploads.acceptance import Accepting


def query_routes(settings: GatewaySettings, parts: QueryParts) -> APIRouter:
    """Return every route of the query app but health."""
    files, vectors = parts.files, parts.vectors
    lookup = Lookup(settings, files, vectors)
    router = APIRouter()
    router.include_router(Listing(settings, vectors, lookup).routes())
    router.include_router(Images(settings, files, lookup, Accepting(settings, files, parts.events)).routes())
    router.include_router(Delivery(settings, files, lookup).routes())
    router.include_router(Annotations(settings, parts.events, vectors, lookup, Revisions(files)).routes())
    router.include_router(ErasureCheck(files, lookup).routes())
    router.include_router(Live(settings, lookup, parts.live).routes())
    router.include_router(History(settings, files, vectors, lookup).routes())
    router.include_router(ImageLineages(settings, files, lookup).routes())
    router.include_router(Search(settings, vectors, lookup, parts.encoder).routes())
    router.include_router(AdminKeys(settings, files).routes())
    router.include_router(FeatureExtraction(settings, files, lookup, parts.features).routes())
    router.include_router(HealthStatistics(settings, vectors, parts.numbers).routes())
    router.include_router(Failures(settings, vectors, lookup).routes())
    router.include_router(AdminLetters(settings, parts.letters).routes())
    router.include_router(Admin(settings, files, vectors, parts.reconciling).routes())
    return router


def query_app(settings: GatewaySettings, parts: QueryParts) -> FastAPI:
    """Return the query app, for a deployment of its own."""
    app = new_app("query", "Darkroom query", "Images out: status, results, sizes, search.", settings, parts)
    app.include_router(query_routes(settings, parts))
    app.include_router(health_routes(parts))
    return app
