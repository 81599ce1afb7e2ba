"""The query app: status, results, search. Needs the read model and the object store; Kafka for deletions."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI

from gateway.access.routes import Routes
from gateway.apps.components import QueryComponents
from gateway.apps.factory import new_app
from gateway.images.annotations import Annotations
from gateway.images.deletion import Deletion
from gateway.images.delivery import Delivery
from gateway.images.erasure_report import ErasureCheck
from gateway.images.history import History
from gateway.images.lineage import ImageLineages
from gateway.images.listing import Listing
from gateway.images.lookup import Lookup
from gateway.images.publishing import Publishing
from gateway.images.revisions import Revisions
from gateway.images.routes import Images
from gateway.images.text import ImageText
from gateway.limits.rate_limits import CHANGES
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


def query_routes(settings: GatewaySettings, components: QueryComponents) -> list[Routes]:
    """Return every route of the query app but health. Fixed paths come before those with an id."""
    files, read_model = components.files, components.read_model
    lookup = Lookup(settings, files, read_model)
    deletion = Deletion(settings, files, Publishing(settings, files, components.events))
    count_change = partial(components.limits.take, kind=CHANGES)
    revisions = Revisions(files)
    return [
        Listing(settings, read_model, lookup).routes(),
        Images(settings, files, lookup, deletion).routes(),
        Delivery(settings, files, lookup).routes(),
        ImageText(settings, files, lookup).routes(),
        Annotations(settings, components.events, read_model, lookup, revisions, count_change).routes(),
        ErasureCheck(files, lookup).routes(),
        Live(settings, lookup, components.live).routes(),
        History(settings, files, read_model, lookup).routes(),
        ImageLineages(settings, files, lookup).routes(),
        Search(settings, read_model, lookup, components.encoder).routes(),
        AdminKeys(settings, files).routes(),
        FeatureExtraction(settings, files, lookup, components.features).routes(),
        HealthStatistics(settings, read_model, components.numbers).routes(),
        Failures(settings, read_model, lookup).routes(),
        AdminLetters(settings, components.letters).routes(),
        Admin(settings, files, read_model, components.reconciling, components.parameters_of).routes(),
    ]


def query_app(settings: GatewaySettings, components: QueryComponents) -> FastAPI:
    """Return the query app, for a separate process."""
    routes = [
        *query_routes(settings, components),
        health_routes(components.readiness, components.limits, components.encoder),
    ]
    return new_app(
        "query", "Darkroom query", "Status, results, sizes and search of images.", settings, components, routes
    )
