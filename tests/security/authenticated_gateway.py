"""An ingest gateway with its real authenticator; keys and tokens for it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from gateway.access.api_keys import ApiKeys
from gateway.access.authenticator import open_authenticator
from gateway.access.settings import AuthSettings
from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from schemas.http.keys import NewKey
from streams.object_store.protocol import FileStore
from tests.support.gateway_components import Sink, StubReadiness, refused, settings

HERE = "http://127.0.0.1:8080"
FETCH = "/api/v1/images/fetch"
ISSUER, AUDIENCE = "https://login.example.org", "darkroom"
SECRET = "a secret of at least thirty-two bytes"
SCOPES = "images:write images:read search"
ADMIN_TOKEN = "correct horse battery"


@dataclass(frozen=True, slots=True)
class Pair:
    """A key of an issuer: the private half signs, the gateway gets the public half."""

    kid: str
    algorithm: str
    private: Any
    public: str

    def setting(self) -> dict[str, str]:
        """Return it as a setting."""
        return {"kid": self.kid, "algorithm": self.algorithm, "key": self.public}

    def jwk(self) -> dict[str, Any]:
        """Return its public half as a JWK."""
        maker = jwt.get_algorithm_by_name(self.algorithm)
        found: dict[str, Any] = maker.to_jwk(self.private.public_key(), as_dict=True)
        return {**found, "kid": self.kid, "alg": self.algorithm, "use": "sig"}


def rsa_pair(kid: str, bits: int = 2048) -> Pair:
    """Make an RSA key."""
    private = rsa.generate_private_key(65537, bits)
    return Pair(kid, "RS256", private, pem(private))


def ed25519_pair(kid: str) -> Pair:
    """Make an Ed25519 key."""
    private = ed25519.Ed25519PrivateKey.generate()
    return Pair(kid, "EdDSA", private, pem(private))


def secret_pair(kid: str, secret: str = SECRET) -> Pair:
    """Return a shared secret."""
    return Pair(kid, "HS256", secret, secret)


def pem(private: Any) -> str:
    """Return the public half of a key as PEM."""
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(private.public_key().public_bytes(serialization.Encoding.PEM, kind).decode())


def claims(**changes: Any) -> dict[str, Any]:
    """Return valid claims with some changed; None removes one."""
    now = int(time.time())
    valid = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "app",
        "owner": "anna",
        "scope": SCOPES,
        "exp": now + 600,
        **changes,
    }
    return {name: value for name, value in valid.items() if value is not None}


def token(pair: Pair, header: Mapping[str, Any] | None = None, **changes: Any) -> str:
    """Return a token of valid claims with some changed, signed by a key."""
    return jwt.encode(claims(**changes), pair.private, pair.algorithm, {"kid": pair.kid, **(header or {})})


def unsigned(header: Mapping[str, Any], body: Mapping[str, Any], signature: bytes = b"") -> str:
    """Return a token that no library would make, assembled from its parts."""
    parts = (json.dumps(header).encode(), json.dumps(body).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


@dataclass(slots=True)
class AuthenticatedGateway:
    """An ingest gateway with authentication."""

    client: httpx.AsyncClient
    sink: Sink = field(default_factory=Sink)

    async def submit(self, **headers: str) -> httpx.Response:
        """Submit a URL with these headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(FETCH, json={"url": "https://example.org/cat.jpg"}, headers=named)

    async def bearer(self, given: str) -> httpx.Response:
        """Submit a URL with a bearer token."""
        return await self.submit(Authorization=f"Bearer {given}")

    async def assert_accepted(self, given: str) -> str:
        """Check that a bearer token is accepted; return its owner."""
        answer = await self.bearer(given)
        assert answer.status_code == 202, answer.text
        return str(self.sink.sent[-1][1].model_dump()["owner"])

    async def assert_rejected(self, given: str, *, expired: bool = False) -> None:
        """Check that a bearer token is refused, without more details than allowed."""
        answer = await self.bearer(given)
        problem = refused(answer, 401, "unauthorized")
        assert problem.detail == ("The credentials have expired." if expired else "The credentials are not valid.")
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
        assert not self.sink.sent


@asynccontextmanager
async def authenticated_gateway(
    files: FileStore, auth: Mapping[str, Any] | None = None, **own: object
) -> AsyncIterator[AuthenticatedGateway]:
    """Open a gateway on a store, with these settings."""
    gateway = settings(**own)
    authenticator = await open_authenticator(gateway, AuthSettings.model_validate(auth or {}), files)
    sink = Sink()
    app = ingest_app(
        gateway, IngestComponents(files=files, events=sink, readiness=StubReadiness(), authenticator=authenticator)
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
        yield AuthenticatedGateway(client, sink)


def trusting(*pairs: Pair, **more: Any) -> dict[str, Any]:
    """Return the settings of a gateway that trusts these keys."""
    return {"keys": [pair.setting() for pair in pairs], "issuer": ISSUER, "audience": AUDIENCE, **more}


async def created_key(store: FileStore, owner: str = "anna", **more: Any) -> str:
    """Create a key in the store; return it."""
    return (await ApiKeys(store).create(NewKey(owner=owner, **more)))[1]
