"""Routes as declarations, registered with an app as a whole.

FastAPI analyses the signature of an endpoint for each router that a route passes through. Declared here, each is
analysed once, which halves the time it takes to build an app.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.routing import APIRoute

F = TypeVar("F", bound=Callable[..., Any])


class Routes:
    """Routes below a prefix, with their common tags, responses and class. Options are those of `FastAPI`'s routes."""

    def __init__(
        self,
        prefix: str = "",
        *,
        tags: Sequence[str] = (),
        responses: Mapping[int | str, dict[str, Any]] | None = None,
        route_class: type[APIRoute] | None = None,
    ) -> None:
        self._prefix = prefix
        self._common: dict[str, Any] = {"tags": list(tags), "route_class_override": route_class}
        self._responses = dict(responses or {})
        self._declared: list[tuple[str, Callable[..., Any], dict[str, Any]]] = []

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Declare a route."""
        responses = {**self._responses, **options.pop("responses", {})}
        self._declared.append((self._prefix + path, endpoint, {**self._common, **options, "responses": responses}))

    def get(self, path: str, **options: Any) -> Callable[[F], F]:
        """Declare the decorated function as the route of GET."""

        def declare(endpoint: F) -> F:
            self.add_api_route(path, endpoint, methods=["GET"], **options)
            return endpoint

        return declare

    def register(self, app: FastAPI) -> None:
        """Add the routes to an app, in the order of their declaration."""
        for path, endpoint, options in self._declared:
            app.router.add_api_route(path, endpoint, **options)
