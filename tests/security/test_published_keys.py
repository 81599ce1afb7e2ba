"""Keys of a JWK set: rotation, limited fetches, and precedence of keys in the settings."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from gateway.access.jwt_verifier import Tokens
from gateway.access.settings import AuthSettings
from streams.object_store.protocol import FileStore
from tests.security.authenticated_gateway import (
    AUDIENCE,
    ISSUER,
    Pair,
    authenticated_gateway,
    ed25519_pair,
    rsa_pair,
    secret_pair,
    token,
)
from tests.security.jwks import Jwks
from tests.support.gateway_components import refused

pytestmark = pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")  # they are what is tested

RSA, OTHER_RSA = rsa_pair("rsa-1"), rsa_pair("rsa-1")
ED, SHARED = ed25519_pair("ed-1"), secret_pair("hs-1")
WEAK_RSA = rsa_pair("weak", 1024)


def published(jwks: Jwks, **more: Any) -> dict[str, Any]:
    """Return the settings of a gateway that reads a JWK set."""
    return {"jwks_url": jwks.url, "issuer": ISSUER, "audience": AUDIENCE, "jwks_apart_s": 0, **more}


async def test_published_keys_rotate(store: FileStore, jwks: Jwks) -> None:
    """A new published key is accepted at the first token that names it, beside the old one until that is withdrawn."""
    old, new = rsa_pair("old"), ed25519_pair("new")
    jwks.keys = [old.jwk()]
    async with authenticated_gateway(store, published(jwks)) as gateway:
        assert await gateway.assert_accepted(token(old)) == "anna"
        assert await gateway.assert_accepted(token(old)) == "anna"
        assert jwks.fetches == 1
        jwks.keys = [old.jwk(), new.jwk()]
        assert await gateway.assert_accepted(token(new)) == await gateway.assert_accepted(token(old)) == "anna"
        assert jwks.fetches == 2
        jwks.keys = [new.jwk()]
        assert await gateway.assert_accepted(token(new)) == "anna"
    async with authenticated_gateway(store, published(jwks, jwks_fresh_s=0.001)) as gateway:
        await gateway.assert_rejected(token(old))
        assert await gateway.assert_accepted(token(new)) == "anna"


async def test_keys_of_the_settings_have_precedence(store: FileStore, jwks: Jwks) -> None:
    """A key in the settings is never replaced by a published one of the same name."""
    jwks.keys = [OTHER_RSA.jwk(), ED.jwk()]
    async with authenticated_gateway(store, published(jwks, keys=[RSA.setting()])) as gateway:
        await gateway.assert_rejected(token(OTHER_RSA))
        assert await gateway.assert_accepted(token(RSA)) == await gateway.assert_accepted(token(ED)) == "anna"


async def test_unknown_kids_fetch_the_set_once_per_interval(store: FileStore, jwks: Jwks) -> None:
    """Many tokens with unknown kids fetch the set once per interval."""
    jwks.keys = [RSA.jwk()]
    async with authenticated_gateway(store, published(jwks, jwks_apart_s=3600)) as gateway:
        for number in range(50):
            await gateway.assert_rejected(token(unpublished_key(f"unknown-{number}")))
        assert await gateway.assert_accepted(token(RSA)) == "anna"
    assert jwks.fetches == 1


def unpublished_key(kid: str) -> Pair:
    """Return a key that is not published, without generating one."""
    return Pair(kid, "RS256", OTHER_RSA.private, OTHER_RSA.public)


async def test_an_unavailable_issuer_is_a_503(store: FileStore, jwks: Jwks) -> None:
    """While the set cannot be read, a token gets 503; cached keys stay valid."""
    jwks.keys, jwks.status = [RSA.jwk()], 500
    async with authenticated_gateway(store, published(jwks, jwks_fresh_s=0.001)) as gateway:
        refused(await gateway.bearer(token(RSA)), 503, "dependency-unavailable")
        jwks.status = 200
        assert await gateway.assert_accepted(token(RSA)) == "anna"
        jwks.status = 500
        assert await gateway.assert_accepted(token(RSA)) == "anna"


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"keys": 7}', b"<html>", b'{"keys": [' + b" " * (1 << 19) + b"]}"]
)
async def test_an_invalid_key_set_counts_as_unavailable(store: FileStore, jwks: Jwks, raw: bytes) -> None:
    """A response that is not a JWK set, or endless, counts as unavailable."""
    jwks.raw = raw
    async with authenticated_gateway(store, published(jwks)) as gateway:
        refused(await gateway.bearer(token(RSA)), 503, "dependency-unavailable")


async def test_redirects_of_the_key_set_are_not_followed(store: FileStore, jwks: Jwks) -> None:
    """Redirects of the set are not followed."""
    jwks.keys, jwks.status = [RSA.jwk()], 302
    async with authenticated_gateway(store, published(jwks)) as gateway:
        refused(await gateway.bearer(token(RSA)), 503, "dependency-unavailable")
    assert jwks.fetches == 1


SECRET_JWK = {
    "kty": "oct",
    "kid": SHARED.kid,
    "alg": "HS256",
    "k": base64.urlsafe_b64encode(SHARED.private.encode()).decode(),
}
UNUSABLE: dict[str, tuple[Pair, dict[str, Any]]] = {
    "a published secret": (SHARED, SECRET_JWK),
    "a key to encrypt with": (RSA, {**RSA.jwk(), "use": "enc"}),
    "a key for another algorithm": (RSA, {**RSA.jwk(), "alg": "RS512"}),
    "a key for none": (RSA, {**RSA.jwk(), "alg": "none"}),
    "a weak key": (WEAK_RSA, WEAK_RSA.jwk()),
    "half a key": (RSA, {"kty": "RSA", "kid": RSA.kid}),
    "a number for a name": (RSA, {**RSA.jwk(), "kid": 7}),
}


@pytest.mark.parametrize(("pair", "jwk"), UNUSABLE.values(), ids=UNUSABLE)
async def test_an_unsupported_published_key_is_ignored(
    store: FileStore, jwks: Jwks, pair: Pair, jwk: dict[str, Any]
) -> None:
    """A key that is not a public key for a supported signature is ignored; the others stay valid."""
    jwks.keys = [jwk, ED.jwk()]
    async with authenticated_gateway(store, published(jwks)) as gateway:
        await gateway.assert_rejected(token(pair))
        assert await gateway.assert_accepted(token(ED)) == "anna"


async def test_a_published_key_needs_no_alg(jwks: Jwks) -> None:
    """A key published without `alg` has the algorithm of its type."""
    jwks.keys = [{name: value for name, value in RSA.jwk().items() if name not in ("alg", "use")}]
    tokens = Tokens(AuthSettings.model_validate(published(jwks)))
    assert (await tokens.identify(token(RSA))).owner == "anna"
