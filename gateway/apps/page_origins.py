"""Public endpoints of an open gateway are closed to pages of other sites, as its other endpoints are.

An open gateway listens on a loopback address and accepts anonymous requests (gateway.access.authenticator). A page
whose host name is rebound to that address could otherwise read metrics, health and the API's description.
"""

from __future__ import annotations

from fastapi import Request

from gateway.access import auth_errors
from gateway.access.authenticator import CredentialAuthenticator
from gateway.access.loopback import is_foreign
from gateway.access.permissions import is_public


async def own_pages(request: Request) -> None:
    """Raise Problem (403) for a public endpoint, on an open gateway, requested by a page of another site."""
    authenticator = request.app.state.authenticator
    if not isinstance(authenticator, CredentialAuthenticator) or authenticator.anonymous is None:
        return
    if is_public(request.scope["route"]) and is_foreign(request):
        raise auth_errors.recorded(request, auth_errors.foreign(), "foreign")
