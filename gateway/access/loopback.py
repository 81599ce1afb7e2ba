"""This machine: which addresses only it can reach, and which requests are a page's of another site in its browser."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fastapi import Request

_HERE = frozenset({"localhost"})


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in _HERE


def is_foreign(request: Request) -> bool:
    """Say whether a request may be a page's that is not ours.

    By a name that is not this machine's (DNS rebinding), from another origin that no setting names, or, where a
    browser names no origin, sent by a page of another site without somebody having gone there.
    """
    if not is_loopback(request.url.hostname or ""):
        return True
    origin = request.headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc != request.headers.get("host") and origin not in request.app.state.origins
    gone_there = request.headers.get("sec-fetch-mode") == "navigate" and request.method in ("GET", "HEAD")
    return request.headers.get("sec-fetch-site", "none") in ("cross-site", "same-site") and not gone_there
