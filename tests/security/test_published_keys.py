"""Keys that an issuer publishes: they rotate, are fetched no more often than they may, and never over a static one."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from gateway.access.jwt_verifier import Tokens
from gateway.access.settings import AuthSettings
from streams.object_store.protocol import FileStore
from tests.security.door import AUDIENCE, ISSUER, Pair, ed25519_pair, house, rsa_pair, secret_pair, token
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
    """A new published key is taken as soon as a token names it, beside the old one until that is withdrawn."""
    old, new = rsa_pair("old"), ed25519_pair("new")
    jwks.keys = [old.jwk()]
    async with house(store, published(jwks)) as gateway:
        assert await gateway.let_in(token(old)) == "anna"
        assert await gateway.let_in(token(old)) == "anna"
        assert jwks.asked == 1
        jwks.keys = [old.jwk(), new.jwk()]
        assert await gateway.let_in(token(new)) == await gateway.let_in(token(old)) == "anna"
        assert jwks.asked == 2
        jwks.keys = [new.jwk()]
        assert await gateway.let_in(token(new)) == "anna"
    async with house(store, published(jwks, jwks_fresh_s=0.001)) as gateway:
        await gateway.kept_out(token(old))
        assert await gateway.let_in(token(new)) == "anna"


async def test_static_and_published_keys_stand_beside_each_other(store: FileStore, jwks: Jwks) -> None:
    """A key in the settings is never replaced by one that is published under its name."""
    jwks.keys = [OTHER_RSA.jwk(), ED.jwk()]
    async with house(store, published(jwks, keys=[RSA.setting()])) as gateway:
        await gateway.kept_out(token(OTHER_RSA))
        assert await gateway.let_in(token(RSA)) == await gateway.let_in(token(ED)) == "anna"


async def test_unknown_kids_do_not_hammer_the_issuer(store: FileStore, jwks: Jwks) -> None:
    """However many tokens name keys that are not there, the set is fetched once in so many seconds."""
    jwks.keys = [RSA.jwk()]
    async with house(store, published(jwks, jwks_apart_s=3600)) as gateway:
        for number in range(50):
            await gateway.kept_out(token(rsa_like(f"unknown-{number}")))
        assert await gateway.let_in(token(RSA)) == "anna"
    assert jwks.asked == 1


def rsa_like(kid: str) -> Pair:
    """Return a key that is not published, without the time it takes to make one."""
    return Pair(kid, "RS256", OTHER_RSA.private, OTHER_RSA.public)


async def test_an_issuer_that_is_away_is_said(store: FileStore, jwks: Jwks) -> None:
    """While the set cannot be read a token is answered 503, not refused; keys known already go on being good."""
    jwks.keys, jwks.status = [RSA.jwk()], 500
    async with house(store, published(jwks, jwks_fresh_s=0.001)) as gateway:
        refused(await gateway.bearer(token(RSA)), 503, "dependency-unavailable")
        jwks.status = 200
        assert await gateway.let_in(token(RSA)) == "anna"
        jwks.status = 500
        assert await gateway.let_in(token(RSA)) == "anna"


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"keys": 7}', b"<html>", b'{"keys": [' + b" " * (1 << 19) + b"]}"]
)
async def test_what_is_no_key_set_is_none(store: FileStore, jwks: Jwks, raw: bytes) -> None:
    """An answer that is no JWK set, or an endless one, counts as no answer."""
    jwks.raw = raw
    async with house(store, published(jwks)) as gateway:
        refused(await gateway.bearer(token(RSA)), 503, "dependency-unavailable")


async def test_no_redirect_is_followed_to_keys(store: FileStore, jwks: Jwks) -> None:
    """The set is where the settings say, or nowhere."""
    jwks.keys, jwks.status = [RSA.jwk()], 302
    async with house(store, published(jwks)) as gateway:
        refused(await gateway.bearer(token(RSA)), 503, "dependency-unavailable")
    assert jwks.asked == 1


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
async def test_a_published_key_that_is_not_for_us_is_left_out(
    store: FileStore, jwks: Jwks, pair: Pair, jwk: dict[str, Any]
) -> None:
    """A key of a set that is no public key for a signature we take opens nothing, and spoils no other."""
    jwks.keys = [jwk, ED.jwk()]
    async with house(store, published(jwks)) as gateway:
        await gateway.kept_out(token(pair))
        assert await gateway.let_in(token(ED)) == "anna"


async def test_a_published_key_needs_no_algorithm_of_its_own(jwks: Jwks) -> None:
    """A key that is published without `alg`, as many issuers do, is for the one algorithm its kind has here."""
    jwks.keys = [{name: value for name, value in RSA.jwk().items() if name not in ("alg", "use")}]
    tokens = Tokens(AuthSettings.model_validate(published(jwks)))
    assert (await tokens.identify(token(RSA))).owner == "anna"
