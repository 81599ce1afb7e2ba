"""The committed OpenAPI document: that of the embedded app with every component, independent of the machine."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from fastapi import FastAPI, Request

from gateway.access.identity import Identity
from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.settings import GatewaySettings

_WITHOUT_STUB = frozenset({"authenticator", "limits"})


class StubComponent:
    """A component without behaviour: its endpoints exist, but are never called."""

    def __getattr__(self, name: str) -> StubComponent:
        """Return another stub, for attributes that are read when an app is assembled."""
        if name.startswith("__"):
            raise AttributeError(name)
        return StubComponent()


class StubAuthenticator:
    """Authenticates no caller; the document shows the credentials of each operation."""

    async def identify(self, request: Request) -> Identity:
        """See gateway.access.dependencies.Authenticator."""
        raise NotImplementedError("the document's app is never served")


def openapi() -> dict[str, Any]:
    """Return the OpenAPI document."""
    return documented_app().openapi()


def documented_app() -> FastAPI:
    """Return the embedded app with every optional component, for its routes and its document."""
    components: dict[str, Any] = {
        field.name: StubComponent()
        for field in fields(QueryComponents)
        if field.name not in _WITHOUT_STUB and (field.default is None or _is_required(field))
    }
    return embedded_app(GatewaySettings(), QueryComponents(authenticator=StubAuthenticator(), **components))


def _is_required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
