"""Errors of downloads: which are final, and which are worth another try."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from agents.core.url_guard import UrlNotAllowed
from schemas.values import ErrorCode
from streams.errors import DependencyUnavailable, Retryable

UNREADABLE_LOCATION = "the source redirects to a URL that cannot be read"
_BAD_LOCATION = "Invalid URL in location header"  # httpx's, which parses it also where it follows no redirects


class Refused(Exception):
    """Final refusal: the URL is forbidden, or another try cannot succeed. The message is public."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def unavailable(message: str, after_s: float | None = None) -> Retryable:
    """Return the error of a source that may answer later."""
    return Retryable(message, after_s=after_s, code=ErrorCode.SOURCE_UNAVAILABLE)


@contextmanager
def sorted_errors() -> Iterator[None]:
    """Raise Refused or Retryable for what the client, the resolver and the spool raise."""
    try:
        yield
    except (UrlNotAllowed, httpx.InvalidURL) as error:
        raise Refused(ErrorCode.URL_NOT_ALLOWED, str(error)) from error
    except UnicodeError as error:  # a host or path that httpx, the resolver or TLS cannot encode
        raise Refused(ErrorCode.URL_NOT_ALLOWED, "the URL cannot be read") from error
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise Refused(ErrorCode.SOURCE_NOT_FOUND, "the URL's host does not exist") from error
        raise unavailable("the source's name could not be resolved") from error
    except (TimeoutError, httpx.TimeoutException) as error:
        raise unavailable("the source took too long") from error
    except httpx.TransportError as error:
        if _is_certificate_error(error):
            raise Refused(ErrorCode.SOURCE_REFUSED, "the source's certificate is not valid") from error
        if str(error).startswith(_BAD_LOCATION):
            raise Refused(ErrorCode.URL_NOT_ALLOWED, UNREADABLE_LOCATION) from error
        raise unavailable(f"the connection to the source failed: {type(error).__name__}") from error
    except OSError as error:
        raise DependencyUnavailable(f"cannot write to the spool: {error.strerror or error}") from error


def _is_certificate_error(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
