"""Loopback addresses, and requests to them that a page of another site may have sent from a browser."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fastapi import Request

_HERE = frozenset({"localhost"})


def is_loopback(host: str) -> bool:
    """Return whether an address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in _HERE


def is_foreign(request: Request) -> bool:
    """Return whether a request may come from a page of another site.

    That is: a Host that is no loopback name (DNS rebinding), an Origin that is neither this gateway's nor in the
    settings, or, without an Origin, a cross-site request other than a navigation (Fetch Metadata).
    """
    if not is_loopback(request.url.hostname or ""):
        return True
    origin = request.headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc != request.headers.get("host") and origin not in request.app.state.origins
    navigated = request.headers.get("sec-fetch-mode") == "navigate" and request.method in ("GET", "HEAD")
    return request.headers.get("sec-fetch-site", "none") in ("cross-site", "same-site") and not navigated
