"""The API's document as it is committed: of the embedded app with every part there is, on no machine in particular."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from fastapi import FastAPI, Request

from gateway.access.identity import Identity
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.settings import GatewaySettings

OTHERWISE = frozenset({"authenticator", "limits"})  # parts that the document is not made with stand-ins of


class Uncalled:
    """A part that is there, so that its endpoints are, and is never asked anything."""

    def __getattr__(self, name: str) -> Uncalled:
        """Return another one: what is only taken from a part when an app is put together."""
        if name.startswith("__"):
            raise AttributeError(name)
        return Uncalled()


class Closed:
    """Lets nobody in: the document says what credentials each operation asks for."""

    async def identify(self, request: Request) -> Identity:
        """See gateway.access.dependencies.Authenticator."""
        raise NotImplementedError("the document's app is never served")


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document."""
    return documented_app().openapi()


def documented_app() -> FastAPI:
    """Return the embedded app with every optional component, for its routes and its document."""
    parts: dict[str, Any] = {
        field.name: Uncalled()
        for field in fields(QueryComponents)
        if field.name not in OTHERWISE and (field.default is None or _is_required(field))
    }
    return embedded_app(GatewaySettings(), QueryComponents(authenticator=Closed(), **parts))


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
