"""CORS: the other origins whose pages may call the API from a browser, by default none.

Cookies are not used: callers send an API key or a token in a header.
"""

from __future__ import annotations

from collections.abc import Collection

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

MAX_AGE_S = 600  # for which a browser may cache a preflight

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")
SENT = (
    *("Authorization", "X-API-Key", "X-Correlation-ID", "traceparent", "Idempotency-Key", "Prefer", "Content-Digest"),
    *("If-Match", "If-None-Match", "If-Modified-Since", "Range", "Last-Event-ID", "Cache-Control"),
    *("Want-Content-Digest", "X-Requested-With", "X-HTTP-Method-Override"),
    *("Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Defer-Length", "Upload-Checksum"),
    *("Upload-Complete", "Upload-Draft-Interop-Version"),
)
"""Headers that a page may send, in addition to the CORS-safelisted ones."""

SHOWN = (
    *("Location", "Link", "Retry-After", "ETag", "Content-Range", "Content-Disposition", "Accept-Ranges"),
    *("X-Correlation-ID", "WWW-Authenticate", "Preference-Applied", "Idempotent-Replayed", "Content-Digest"),
    *("Darkroom-Job", "Allow"),
    *("RateLimit", "RateLimit-Policy", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
    *("Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"),
    *("Upload-Length", "Upload-Offset", "Upload-Metadata", "Upload-Defer-Length", "Upload-Expires"),
    *("Upload-Complete", "Upload-Limit", "Upload-Draft-Interop-Version"),
)
"""Response headers that a page may read."""


def allow_origins(app: FastAPI, origins: Collection[str]) -> None:
    """Allow pages of these origins to call an app. Call this last: the middleware must be the outermost."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=SENT,
            expose_headers=SHOWN,
            max_age=MAX_AGE_S,
        )
