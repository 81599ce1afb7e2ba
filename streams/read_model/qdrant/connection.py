"""The client of a Qdrant server: REST or gRPC, with TLS, client certificate and API key.

Checked in tests with servers that require a certificate of a private CA, one for each protocol; not with a Qdrant
server. Certificates are read once, when the client is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from streams.errors import AccessDenied, DependencyUnavailable, NotReady
from streams.read_model.security import check_security, server_url, tls_context, uses_tls
from streams.settings import QdrantSettings

MINIMUM_VERSION = (1, 18)  # the first that adds named vectors to an existing collection
ANSWERED_ERRORS = (UnexpectedResponse, grpc.RpcError)  # raised for an answer that is an error; by gRPC for none, too
_OF_THE_REQUEST, _DENIED = (400, 409, 422), (401, 403)

# As Qdrant answers by REST; its other errors are 500 there, or another process's passing lock.
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def connect(settings: QdrantSettings) -> QdrantClient:
    """Return a client of the configured server, which connects at its first call. Raises NotReady for its settings."""
    check_security(settings)
    tls: dict[str, Any] = {}
    if uses_tls(settings):
        tls = {"verify": tls_context(settings), "grpc_options": _grpc_certificates(settings)}
    key = settings.api_key
    return QdrantClient(
        url=server_url(settings),
        # As a header: given as `api_key`, each start without TLS would warn, also on this machine.
        headers={"api-key": key.get_secret_value()} if key else None,
        timeout=max(1, round(settings.timeout_s)),
        pool_size=settings.pool_size,
        prefer_grpc=settings.grpc,
        grpc_port=settings.grpc_port,
        check_compatibility=False,  # it warns in a thread of its own; see require_version
        **tls,
    )


def require_version(client: QdrantClient) -> None:
    """Raise NotReady unless the server is MINIMUM_VERSION or later."""
    version = client.info().version
    found = re.match(r"v?(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < MINIMUM_VERSION:
        needed = ".".join(str(part) for part in MINIMUM_VERSION)
        raise NotReady(
            f"the Qdrant server at DARKROOM_QDRANT__URL has version {version or 'unknown'}; Darkroom needs {needed} or "
            "later, since it adds vectors to an existing collection: upgrade the server"
        )


def status_of(error: Exception) -> int:
    """Return the HTTP status of an answered error, or the one that corresponds to gRPC's; 500 if it has none."""
    if isinstance(error, UnexpectedResponse):
        return error.status_code or 500
    return _HTTP_STATUS.get(error.code(), 500) if isinstance(error, grpc.Call) else 500


@contextmanager
def translate_qdrant_errors() -> Iterator[None]:
    """Translate the client's errors for an unavailable, busy or full Qdrant into DependencyUnavailable.

    A refused key or certificate is AccessDenied. Errors of the request itself, 400, 409 and 422, pass unchanged.
    """
    try:
        yield
    except ResourceExhaustedResponse as error:
        raise DependencyUnavailable(f"Qdrant is busy: {error}", after_s=float(error.retry_after_s)) from error
    except ANSWERED_ERRORS as error:
        status = status_of(error)
        if status in _OF_THE_REQUEST:
            raise
        if status in _DENIED:
            raise AccessDenied(f"Qdrant refuses DARKROOM_QDRANT__API_KEY, or its rights: {_answer(error)}") from error
        raise DependencyUnavailable(f"Qdrant: {_answer(error)}") from error
    except (ResponseHandlingException, ApiException, OSError) as error:
        raise DependencyUnavailable(f"Qdrant does not answer: {error}") from error


def _answer(error: Exception) -> str:
    if isinstance(error, UnexpectedResponse):
        return f"{error.status_code} {error.reason_phrase}"
    return f"{error.code().name} {error.details()}" if isinstance(error, grpc.Call) else str(error)


def _grpc_certificates(settings: QdrantSettings) -> dict[str, bytes]:
    """Return the contents of the files, under the names by which qdrant-client finds them among gRPC's options."""
    files = {
        "root_certificates": settings.ca_file,
        "private_key": settings.client_key_file,
        "certificate_chain": settings.client_cert_file,
    }
    return {name: path.read_bytes() for name, path in files.items() if path is not None}
