"""JWT authentication: every invalid token is refused, without details."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from gateway.access.settings import AuthSettings
from streams.errors import NotReady
from streams.object_store.protocol import FileStore
from tests.security.authenticated_gateway import (
    AUDIENCE,
    ISSUER,
    SCOPES,
    Pair,
    authenticated_gateway,
    claims,
    ed25519_pair,
    rsa_pair,
    secret_pair,
    token,
    trusting,
    unsigned,
)
from tests.security.jwks import Jwks
from tests.support.gateway_components import refused

pytestmark = pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")  # they are what is tested

RSA, OTHER_RSA = rsa_pair("rsa-1"), rsa_pair("rsa-1")
ED, OTHER_ED = ed25519_pair("ed-1"), ed25519_pair("ed-1")
SHARED, OTHER_SHARED = secret_pair("hs-1"), secret_pair("hs-1", "another secret of at least 32 bytes")
TRUSTED = trusting(RSA, ED, SHARED)


@pytest.mark.parametrize("pair", [RSA, ED, SHARED], ids=lambda pair: pair.algorithm)
async def test_a_valid_token_is_accepted(store: FileStore, pair: Pair) -> None:
    """A token signed by a trusted key of each algorithm gives access to its owner's images, and no other's."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        assert await gateway.assert_accepted(token(pair)) == "anna"
        assert await gateway.assert_accepted(token(pair, owner="bert")) == "bert"


@pytest.mark.parametrize("pair", [OTHER_RSA, OTHER_ED, OTHER_SHARED], ids=lambda pair: pair.algorithm)
async def test_a_forged_signature_is_refused(store: FileStore, pair: Pair) -> None:
    """A token signed by another key with the kid of a trusted one is refused."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        await gateway.assert_rejected(token(pair))


@pytest.mark.parametrize("pair", [RSA, ED, SHARED], ids=lambda pair: pair.algorithm)
async def test_a_changed_token_is_refused(store: FileStore, pair: Pair) -> None:
    """A token with changed claims, or without its signature, is refused."""
    header, _, signature = token(pair).split(".")
    changed = base64.urlsafe_b64encode(json.dumps(claims(owner="bert")).encode()).decode().rstrip("=")
    async with authenticated_gateway(store, TRUSTED) as gateway:
        await gateway.assert_rejected(f"{header}.{changed}.{signature}")
        await gateway.assert_rejected(f"{header}.{changed}.")
        await gateway.assert_rejected(f"{header}.{changed}")


async def test_an_expired_token_is_refused(store: FileStore) -> None:
    """A token past its expiry and the leeway is refused; its holder gets the reason."""
    now = int(time.time())
    async with authenticated_gateway(store, {**TRUSTED, "leeway_s": 60}) as gateway:
        await gateway.assert_rejected(token(RSA, exp=now - 3600), expired=True)
        await gateway.assert_rejected(token(OTHER_RSA, exp=now - 3600))
        assert await gateway.assert_accepted(token(RSA, exp=now - 5)) == "anna"


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_a_token_from_the_future_is_refused(store: FileStore, claim: str) -> None:
    """A token that is not valid yet, or issued in the future, is refused beyond the leeway."""
    now = int(time.time())
    async with authenticated_gateway(store, {**TRUSTED, "leeway_s": 60}) as gateway:
        await gateway.assert_rejected(token(RSA, None, **{claim: now + 3600}))
        assert await gateway.assert_accepted(token(RSA, None, **{claim: now + 5})) == "anna"


@pytest.mark.parametrize("audience", ["billing", ["billing", "mail"], "", [], 7, None, "Darkroom", "darkroom "])
async def test_a_token_for_another_audience_is_refused(store: FileStore, audience: Any) -> None:
    """A token for another audience, or without one, is refused."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        await gateway.assert_rejected(token(RSA, aud=audience))


async def test_a_token_for_several_audiences_is_accepted(store: FileStore) -> None:
    """A token for several audiences, one of them this gateway's, is accepted."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        assert await gateway.assert_accepted(token(RSA, aud=["billing", AUDIENCE])) == "anna"


@pytest.mark.parametrize("issuer", ["https://evil.example", "", None, f"{ISSUER}/", [ISSUER, "https://evil.example"]])
async def test_a_token_of_another_issuer_is_refused(store: FileStore, issuer: Any) -> None:
    """A token of another issuer, or without one, is refused, even if a trusted key signed it."""
    # Put together by hand: the library would not write an issuer that is a list.
    header = {"alg": "HS256", "kid": SHARED.kid}
    body = unsigned(header, claims(iss=issuer)).rpartition(".")[0]
    signature = hmac.new(SHARED.private.encode(), body.encode(), hashlib.sha256).digest()
    async with authenticated_gateway(store, TRUSTED) as gateway:
        await gateway.assert_rejected(unsigned(header, claims(iss=issuer), signature))


@pytest.mark.parametrize(
    "spelling", ["none", "None", "NONE", "nOnE", " none", "none ", "", None, 0, False, [], {}, ["none"]]
)
async def test_alg_none_is_refused(store: FileStore, spelling: Any) -> None:
    """A token with `alg` none is refused in every spelling, with a signature or without."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        for kid in (RSA.kid, SHARED.kid, ""):
            for signature in (b"", b"\x00" * 32):
                await gateway.assert_rejected(
                    unsigned({"alg": spelling, "kid": kid, "typ": "JWT"}, claims(), signature)
                )
        await gateway.assert_rejected(unsigned({"kid": RSA.kid, "typ": "JWT"}, claims()))


@pytest.mark.parametrize("pair", [RSA, ED], ids=lambda pair: pair.algorithm)
async def test_a_public_key_as_a_secret_is_refused(store: FileStore, pair: Pair) -> None:
    """A token signed by HMAC with a trusted public key as the secret (key confusion) is refused, in any form."""
    der = pair.private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    async with authenticated_gateway(store, TRUSTED) as gateway:
        for secret in (pair.public.encode(), pair.public.strip().encode(), der, json.dumps(pair.jwk()).encode()):
            for kid in (pair.kid, SHARED.kid):
                header = {"alg": "HS256", "kid": kid, "typ": "JWT"}
                signed = unsigned(header, claims()).rpartition(".")[0]
                signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
                await gateway.assert_rejected(unsigned(header, claims(), signature))


async def test_a_key_has_one_algorithm(store: FileStore) -> None:
    """A token in another algorithm than its key's is refused, though the same key signed it."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        for algorithm in ("RS384", "RS512", "PS256"):
            await gateway.assert_rejected(jwt.encode(claims(), RSA.private, algorithm, {"kid": RSA.kid}))
        for algorithm in ("HS384", "HS512"):
            await gateway.assert_rejected(
                jwt.encode(claims(), f"{SHARED.private} {'x' * 64}", algorithm, {"kid": SHARED.kid})
            )
            await gateway.assert_rejected(jwt.encode(claims(), SHARED.private, algorithm, {"kid": SHARED.kid}))
        await gateway.assert_rejected(jwt.encode(claims(), RSA.private, "RS256", {"kid": ED.kid}))


KIDS = [
    "unknown", "", "../../../../dev/null", "/dev/null", "rsa-1\x00", "rsa-1' OR '1'='1", "rsa-1 ", "RSA-1",
    "https://evil.example/keys.json", "x" * 4000, None, 1, True, ["rsa-1"], {"kid": "rsa-1"},
]  # fmt: skip


@pytest.mark.parametrize("kid", KIDS, ids=lambda kid: repr(kid)[:30])
async def test_an_unknown_kid_is_refused(store: FileStore, kid: Any) -> None:
    """An unknown kid, or one that is a path, a query or not text, is refused without a lookup elsewhere."""
    empty = hmac.new(b"", b"", hashlib.sha256).digest()
    async with authenticated_gateway(store, TRUSTED) as gateway:
        await gateway.assert_rejected(unsigned({"alg": "HS256", "kid": kid, "typ": "JWT"}, claims(), empty))
        await gateway.assert_rejected(unsigned({"alg": "RS256", "kid": kid, "typ": "JWT"}, claims(), b"\x00" * 256))


async def test_a_token_needs_a_kid(store: FileStore) -> None:
    """A token without a kid is refused: no key is tried by chance."""
    async with authenticated_gateway(store, trusting(SHARED)) as gateway:
        await gateway.assert_rejected(jwt.encode(claims(), SHARED.private, "HS256"))


@pytest.mark.parametrize("extension", ["crit", "b64"])
async def test_a_critical_extension_is_refused(store: FileStore, extension: str) -> None:
    """A token with a critical extension (`crit`, RFC 7515) is refused: none is supported."""
    extra = {"crit": {"crit": ["exp"], "exp": 1}, "b64": {"crit": ["b64"], "b64": False}}[extension]
    header = {"alg": "HS256", "kid": SHARED.kid, **extra}
    signed = unsigned(header, claims()).rpartition(".")[0]
    signature = hmac.new(SHARED.private.encode(), signed.encode(), hashlib.sha256).digest()
    async with authenticated_gateway(store, TRUSTED) as gateway:
        await gateway.assert_rejected(unsigned(header, claims(), signature))


async def test_a_key_in_the_token_is_ignored(store: FileStore, jwks: Jwks) -> None:
    """A key inside the token's header (`jwk`, `x5c`), or at an address in it (`jku`, `x5u`), is never used."""
    mine = rsa_pair(RSA.kid)
    jwks.keys = [mine.jwk()]
    brought = ({"jwk": mine.jwk()}, {"jku": jwks.url}, {"x5u": jwks.url}, {"x5c": [mine.public]})
    async with authenticated_gateway(store, TRUSTED) as gateway:
        for header in brought:
            await gateway.assert_rejected(token(mine, header))
            await gateway.assert_rejected(token(mine, {**header, "kid": "mine"}))
    assert jwks.fetches == 0


@pytest.mark.parametrize("missing", ["exp", "iss", "aud", "owner"])
async def test_required_claims(store: FileStore, missing: str) -> None:
    """A token without expiry, issuer, audience or owner is refused."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        await gateway.assert_rejected(token(RSA, **{missing: None}))


@pytest.mark.parametrize("exp", ["never", "9999999999x", [], {}, True, float("inf"), -1, 0])
async def test_an_invalid_expiry_is_refused(store: FileStore, exp: Any) -> None:
    """A token whose expiry is not a time is refused, without a 500."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        answer = await gateway.bearer(token(RSA, exp=exp))
    refused(answer, 401, "unauthorized")


@pytest.mark.parametrize("owner", ["", "../bert", "a/b", "anna\n", "x" * 65, ".hidden", 7, ["anna"], None, "ann a"])
async def test_an_owner_is_a_plain_name(store: FileStore, owner: Any) -> None:
    """A token whose owner is not a plain name is refused."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        await gateway.assert_rejected(token(RSA, owner=owner))


async def test_the_owner_claim_is_a_setting(store: FileStore) -> None:
    """The owner is the claim of the settings, and no other claim is tried."""
    async with authenticated_gateway(store, {**TRUSTED, "owner_claim": "tenant"}) as gateway:
        await gateway.assert_rejected(token(RSA, sub="carl"))
        assert await gateway.assert_accepted(token(RSA, tenant="carl")) == "carl"


@pytest.mark.parametrize("given", [
    {"scope": "images:read search"}, {"scope": ""}, {"scope": None}, {"scope": None, "scopes": ["images:read"]},
    {"scope": ["images:write"]}, {"scope": "images:write:all"}, {"scope": "Images:Write"},
    {"scope": None, "scopes": "images:write"}, {"scope": None, "scopes": [["images:write"], {"images:write": 1}, 7]},
])  # fmt: skip
async def test_scopes_of_a_token_are_enforced(store: FileStore, given: dict[str, Any]) -> None:
    """A token without the required scope gets 403 with that scope, and nothing happens."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        answer = await gateway.bearer(token(RSA, **given))
        refused(answer, 403, "forbidden")
        assert 'error="insufficient_scope", scope="images:write"' in answer.headers["www-authenticate"]
        assert not gateway.sink.sent


async def test_scopes_may_be_a_list(store: FileStore) -> None:
    """Scopes may be text separated by spaces, or a list."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        assert await gateway.assert_accepted(token(RSA, scope=None, scopes=SCOPES.split())) == "anna"


NONSENSE = [
    "", ".", "..", "...", "a.b.c", "a.b.c.d", "null", "\u00e9\u00e9.\u00e9.\u00e9", "=.=.=", "x" * 7000,
    base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=") + ".e30.e30",
    base64.urlsafe_b64encode(b'{"kid":' + b"[" * 5000).decode().rstrip("=") + ".e30.e30",
    unsigned({"alg": "HS256", "kid": "hs-1"}, {}, b"x") + "=", "Bearer", "e30.e30.e30",
]  # fmt: skip


@pytest.mark.parametrize("given", NONSENSE, ids=range(len(NONSENSE)))
async def test_malformed_tokens_are_refused(store: FileStore, given: str) -> None:
    """Malformed tokens are refused as invalid, without a 500."""
    async with authenticated_gateway(store, TRUSTED) as gateway:
        answer = await gateway.submit(Authorization=f"Bearer {given}".encode())  # type: ignore[arg-type]
        refused(answer, 401, "unauthorized")
        assert not gateway.sink.sent


async def test_a_token_is_refused_without_configured_keys(store: FileStore) -> None:
    """Without keys for tokens, a token is refused, also on an open gateway."""
    async with authenticated_gateway(store) as gateway:
        await gateway.assert_rejected(token(RSA))
        await gateway.assert_rejected(unsigned({"alg": "none"}, claims()))


async def test_two_keys_are_valid_during_a_rotation(store: FileStore) -> None:
    """During a rotation tokens of the old and the new key are accepted; afterwards those of the new key only."""
    old, new = rsa_pair("2026-10"), ed25519_pair("2026-11")
    async with authenticated_gateway(store, trusting(old, new)) as gateway:
        assert await gateway.assert_accepted(token(old)) == await gateway.assert_accepted(token(new)) == "anna"
    async with authenticated_gateway(store, trusting(new)) as gateway:
        await gateway.assert_rejected(token(old))
        assert await gateway.assert_accepted(token(new)) == "anna"


async def test_a_key_may_be_in_a_file(store: FileStore, tmp_path: Path) -> None:
    """A key in a file, as secrets are mounted, works like one in the settings."""
    (tmp_path / "key").write_text(f"{SHARED.public}\n")
    key = {"kid": SHARED.kid, "algorithm": "HS256", "file": str(tmp_path / "key")}
    async with authenticated_gateway(store, {**TRUSTED, "keys": [key]}) as gateway:
        assert await gateway.assert_accepted(token(SHARED)) == "anna"


WEAK_RSA = rsa_pair("weak", 1024)
PRIVATE = RSA.private.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
BAD_KEYS = {
    "a short secret": ("HS256", "too short"),
    "a public key as a secret": ("HS256", RSA.public),
    "a weak RSA key": ("RS256", WEAK_RSA.public),
    "a private key": ("RS256", PRIVATE),
    "another kind of key": ("RS256", ED.public),
    "no key": ("EdDSA", "hello"),
}


@pytest.mark.parametrize(("algorithm", "key"), BAD_KEYS.values(), ids=BAD_KEYS)
async def test_an_invalid_key_prevents_the_start(store: FileStore, algorithm: str, key: str) -> None:
    """A gateway does not start with a weak key or one of the wrong type; the error has the kid, not the key."""
    auth = {**TRUSTED, "keys": [{"kid": "mine", "algorithm": algorithm, "key": key}]}
    with pytest.raises(NotReady, match="kid mine") as refusal:
        async with authenticated_gateway(store, auth):
            pass
    assert key.strip()[:20] not in str(refusal.value)


WRONG = {
    "no issuer": {**TRUSTED, "issuer": None},
    "no audience": {**TRUSTED, "audience": None},
    "one kid twice": trusting(RSA, OTHER_RSA),
    "a key and a file": {**TRUSTED, "keys": [{**RSA.setting(), "file": "key.pem"}]},
    "neither": {**TRUSTED, "keys": [{"kid": "a", "algorithm": "RS256"}]},
    "no signature": {**TRUSTED, "keys": [{"kid": "a", "algorithm": "none", "key": "x"}]},
    "a JWK set anybody can change": {**TRUSTED, "jwks_url": "http://login.example.org/keys"},
    "a JWK set in a file": {**TRUSTED, "jwks_url": "file:///etc/passwd"},
}


@pytest.mark.parametrize("auth", WRONG.values(), ids=WRONG)
def test_unsafe_settings_are_refused(auth: dict[str, Any]) -> None:
    """Settings that would accept tokens of other systems are invalid."""
    with pytest.raises(ValueError, match=r"AuthSettings|keys"):
        AuthSettings.model_validate(auth)
