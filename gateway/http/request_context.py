"""Values that handlers derive from a request: base URL, trace context; and the installed version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

from fastapi import Request

from gateway.settings import GatewaySettings


def version() -> str:
    """Return the installed version of Darkroom."""
    try:
        return installed_version("darkroom")
    except PackageNotFoundError:
        return "0"


def base_url(request: Request, settings: GatewaySettings) -> str:
    """Return the base of URLs in responses, without a trailing slash."""
    return (settings.public_url or str(request.base_url)).rstrip("/")


def traceparent_of(request: Request) -> str:
    """Return the traceparent of a request."""
    return str(request.state.traceparent)
