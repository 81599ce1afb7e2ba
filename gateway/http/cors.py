"""CORS: pages of which other origins may call the API from a browser. None, unless settings name them.

Credentials of the browser's own, such as cookies, are never asked for: callers send an API key or a token themselves.
"""

from __future__ import annotations

from collections.abc import Collection

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

MAX_AGE_S = 600  # a browser need not ask again for so long

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")
SENT = (
    *("Authorization", "X-API-Key", "X-Correlation-ID", "traceparent", "Idempotency-Key", "Prefer", "Content-Digest"),
    *("If-Match", "If-None-Match", "If-Modified-Since", "Range", "Last-Event-ID", "Cache-Control"),
    *("Want-Content-Digest", "X-Requested-With", "X-HTTP-Method-Override"),
    *("Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Defer-Length", "Upload-Checksum"),
    *("Upload-Complete", "Upload-Draft-Interop-Version"),
)
"""Headers that a page may send, beside those every page may."""

SHOWN = (
    *("Location", "Link", "Retry-After", "ETag", "Content-Range", "Content-Disposition", "Accept-Ranges"),
    *("X-Correlation-ID", "WWW-Authenticate", "Preference-Applied", "Idempotent-Replayed", "Content-Digest"),
    *("Darkroom-Job", "Allow"),
    *("RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
    *("Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"),
    *("Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Defer-Length", "Upload-Expires"),
    *("Upload-Complete", "Upload-Limit", "Upload-Draft-Interop-Version"),
)
"""Headers of answers that a page may read."""


"""`https://app.example.org`, or `*` for every page there is."""


def allow_origins(app: FastAPI, origins: Collection[str]) -> None:
    """Let pages of these origins call an app, and read every answer of it: call this last, it must be outermost."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=SENT,
            expose_headers=SHOWN,
            max_age=MAX_AGE_S,
        )
