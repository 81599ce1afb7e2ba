"""TLS and authentication of connections to a Qdrant server.

Loads no Qdrant client: every process checks these settings.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from streams.errors import NotReady
from streams.settings import QdrantSettings

_TLS_FILES = ("ca_file", "client_cert_file", "client_key_file")


def server_url(qdrant: QdrantSettings) -> str:
    """Return the server's URL; without a scheme it is https if there is an API key, as Qdrant's client reads it."""
    url = qdrant.url or ""
    if "://" in url:
        return url
    return f"{'http' if qdrant.api_key is None else 'https'}://{url}"


def uses_tls(qdrant: QdrantSettings) -> bool:
    """Return whether connections are encrypted."""
    return urlsplit(server_url(qdrant)).scheme == "https"


def tls_context(qdrant: QdrantSettings) -> ssl.SSLContext:
    """Return a context that verifies the server's name and certificate. Raises NotReady for an unusable file."""
    try:
        context = ssl.create_default_context(cafile=qdrant.ca_file)
    except (OSError, ValueError) as error:
        raise NotReady(f"DARKROOM_QDRANT__CA_FILE: {qdrant.ca_file} is not a PEM file of CAs: {error}") from error
    if qdrant.client_cert_file is not None and qdrant.client_key_file is not None:
        try:
            # A function, so that OpenSSL never asks for the password of an encrypted key on the terminal.
            context.load_cert_chain(qdrant.client_cert_file, qdrant.client_key_file, lambda: "")
        except (OSError, ValueError) as error:
            raise NotReady(
                "DARKROOM_QDRANT__CLIENT_CERT_FILE and DARKROOM_QDRANT__CLIENT_KEY_FILE: "
                f"{qdrant.client_cert_file} and {qdrant.client_key_file} are not a certificate and its unencrypted "
                f"private key: {error}"
            ) from error
    return context


def check_security(qdrant: QdrantSettings) -> None:
    """Raise NotReady, naming all problems, for settings under which no client may connect."""
    if problems := list(security_problems(qdrant)):
        raise NotReady("unsafe settings: " + "; ".join(problems))


def security_problems(qdrant: QdrantSettings) -> Iterator[str]:
    """Yield a sentence for each contradiction: what is configured would not be used, or would be sent unprotected."""
    given = [_variable(name) for name in _TLS_FILES if getattr(qdrant, name) is not None]
    if not qdrant.url:
        given += [_variable("api_key")] * (qdrant.api_key is not None) + [_variable("grpc")] * qdrant.grpc
        if given:
            yield f"{', '.join(given)} would not be used: DARKROOM_QDRANT__URL is empty"
        return
    try:
        url = urlsplit(server_url(qdrant))
        host, _ = url.hostname or "", url.port
    except ValueError as error:
        yield f"DARKROOM_QDRANT__URL is not a URL: {error}"
        return
    if url.scheme not in ("http", "https"):
        yield f"DARKROOM_QDRANT__URL starts with {url.scheme}://, not http:// or https://"
        return
    if url.scheme == "http" and given:
        yield f"{', '.join(given)} would not be used: DARKROOM_QDRANT__URL is not https"
    if qdrant.client_cert_file is not None and qdrant.client_key_file is None:
        yield "DARKROOM_QDRANT__CLIENT_CERT_FILE needs DARKROOM_QDRANT__CLIENT_KEY_FILE"
    if qdrant.client_key_file is not None and qdrant.client_cert_file is None:
        yield "DARKROOM_QDRANT__CLIENT_KEY_FILE needs DARKROOM_QDRANT__CLIENT_CERT_FILE"
    exposed = url.scheme == "http" and not _is_loopback(host)
    if qdrant.api_key is not None and exposed and not qdrant.api_key_without_tls:
        yield (
            "DARKROOM_QDRANT__API_KEY without https is readable by others on the network: use https in "
            "DARKROOM_QDRANT__URL, or set DARKROOM_QDRANT__API_KEY_WITHOUT_TLS to true"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _variable(name: str) -> str:
    return f"DARKROOM_QDRANT__{name.upper()}"
