"""API keys: creation, authentication, scopes, limits, expiry and revocation."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from darkroom.commands import keys
from gateway.access.api_keys import ApiKeys, KeyRefused, KnownKeys, TooManyKeys
from gateway.access.identity import Scope
from gateway.access.ttl_cache import TtlCache
from gateway.limits import rate_limits
from gateway.limits.settings import parse_limits
from schemas.http.keys import KeyState, LimitKind, NewKey
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore
from tests.security.authenticated_gateway import authenticated_gateway, created_key
from tests.support.gateway_components import refused


def cache_of(store: FileStore) -> KnownKeys:
    """Return a gateway's cache of keys, reloaded for each lookup."""
    return KnownKeys(ApiKeys(store), fresh_s=1e-9, timeout_s=10, apart_s=0)


async def test_a_key_gives_access_to_its_owners_images(store: FileStore) -> None:
    """A key is accepted as a bearer token and as X-API-Key, and gives access to its owner's images."""
    key = await created_key(store)
    async with authenticated_gateway(store) as gateway:
        assert await gateway.assert_accepted(key) == "anna"
        assert (await gateway.submit(X_API_Key=key)).status_code == 202


async def test_a_stored_key_is_not_a_key(store: FileStore) -> None:
    """A stored key contains neither the key nor its secret, and is not accepted as one."""
    key = await created_key(store)
    secret = key.split("_", 2)[2]
    (stored,) = [info.key async for info in store.list("keys/")]
    text = (await store.get(stored)).decode()
    assert secret not in text
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert digest in text
    async with authenticated_gateway(store) as gateway:
        await gateway.assert_rejected(key.replace(secret, digest))
        await gateway.assert_rejected(digest)


def invalid_variants(key: str) -> list[str]:
    """Return invalid keys that look like a key."""
    _, key_id, secret = key.split("_", 2)
    flipped = ("A" if secret[0] != "A" else "B") + secret[1:]
    return [
        f"dk_{key_id}_{flipped}", f"dk_{'0' * 16}_{secret}", f"dk_{key_id}_", f"dk_{key_id}", "dk_", "dk__", f"{key}x",
        key[:-1], key.upper(), f"dk_{key_id.upper()}_{secret}", secret, f"dk_../{key_id}_{secret}", f"dk_*_{secret}",
        f"dk_{key_id}.json_{secret}", f"dk_{key_id}%00_{secret}", f"dk_{key_id}_{secret}\u00e9",
    ]  # fmt: skip


async def test_invalid_keys_are_refused(store: FileStore) -> None:
    """A wrong secret, another id and every other variation of a key get the same 401."""
    key = await created_key(store)
    async with authenticated_gateway(store) as gateway:
        for wrong in invalid_variants(key):
            for header in ({"Authorization": f"Bearer {wrong}".encode()}, {"X_API_Key": wrong.encode()}):
                answer = await gateway.submit(**header)  # type: ignore[arg-type]
                assert refused(answer, 401, "unauthorized").detail == "The credentials are not valid."
        assert not gateway.sink.sent
        assert await gateway.assert_accepted(key) == "anna"


async def test_the_secret_of_another_key_is_refused(store: FileStore) -> None:
    """The secret of one key is refused with the id of another."""
    (_, anna, _), (_, _, bert) = (
        (await created_key(store)).split("_", 2),
        (await created_key(store, "bert")).split("_", 2),
    )
    async with authenticated_gateway(store) as gateway:
        await gateway.assert_rejected(f"dk_{anna}_{bert}")


async def test_an_expired_key_is_reported_to_its_holder(store: FileStore) -> None:
    """An expired key is refused; that it has expired is disclosed only to the holder of its secret."""
    key = await created_key(store, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    later = await created_key(store, expires_at=datetime.now(UTC) + timedelta(hours=1))
    async with authenticated_gateway(store) as gateway:
        await gateway.assert_rejected(key, expired=True)
        await gateway.assert_rejected(invalid_variants(key)[0])
        assert await gateway.assert_accepted(later) == "anna"


async def test_a_revoked_key_is_refused(store: FileStore) -> None:
    """A revoked key is refused by gateways that had cached it; revoking it again changes nothing."""
    keys, known = ApiKeys(store), cache_of(store)
    key, secret = await keys.create(NewKey(owner="anna"))
    assert (await known.identify(secret)).owner == "anna"
    first = await keys.revoke(key.id)
    assert first is not None
    assert first.state is KeyState.REVOKED
    assert await keys.revoke(key.id) == first
    with pytest.raises(KeyRefused) as refusal:
        await known.identify(secret)
    assert not refusal.value.expired


async def test_a_new_key_is_accepted_at_once(store: FileStore) -> None:
    """A key that is created while a gateway runs is accepted at its first use."""
    known = KnownKeys(ApiKeys(store), fresh_s=60, timeout_s=10)
    for owner in ("anna", "bert"):
        assert (await known.identify(await created_key(store, owner))).owner == owner


async def test_unknown_keys_cost_one_read_of_the_store() -> None:
    """Concurrent lookups of many unknown names read the source once."""
    reads = 0

    async def read() -> dict[str, int]:
        nonlocal reads
        reads += 1
        return {"there": 1}

    table = TtlCache("things", read, fresh_s=60, apart_s=60, stale_s=60, timeout_s=10)
    assert [await table.find(f"unknown-{number}") for number in range(100)] == [None] * 100
    assert await table.find("there") == 1
    assert reads == 1


async def test_cached_keys_expire_while_the_store_is_unavailable() -> None:
    """Cached keys are used for a while without the source; then lookups raise DependencyUnavailable."""
    now, away = 0.0, False

    async def read() -> dict[str, int]:
        if away:
            raise DependencyUnavailable("no store")
        return {"there": 1}

    table = TtlCache("things", read, fresh_s=3, apart_s=1, stale_s=60, timeout_s=10, clock=lambda: now)
    assert await table.find("there") == 1
    away = True
    now = 50.0
    assert await table.find("there") == 1
    now = 61.0
    with pytest.raises(DependencyUnavailable):
        await table.find("there")
    away, now = False, 63.0
    assert await table.find("there") == 1


async def test_an_unreadable_key_is_refused(store: FileStore) -> None:
    """An unreadable object among the keys is ignored; the other keys stay valid."""
    key = await created_key(store)
    text = await store.get(f"keys/{key.split('_')[1]}.json")
    await store.put("keys/0123456789abcdef.json", text, content_type="application/json")  # of another id than its name
    await store.put("keys/fedcba9876543210.json", b"{", content_type="application/json")
    known = cache_of(store)
    assert (await known.identify(key)).owner == "anna"
    for key_id in ("0123456789abcdef", "fedcba9876543210"):
        with pytest.raises(KeyRefused):
            await known.identify(f"dk_{key_id}_{key.split('_', 2)[2]}")


async def test_the_number_of_keys_is_limited(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of keys is limited to what every gateway can cache."""
    monkeypatch.setattr("gateway.access.api_keys.MAX_KEYS", 2)
    await created_key(store)
    await created_key(store)
    with pytest.raises(TooManyKeys):
        await created_key(store)


async def test_a_key_has_scopes_and_limits(store: FileStore) -> None:
    """A key has the scopes and the limits it was created with."""
    key = await created_key(store, scopes={Scope.READ}, limits={"uploads": "50/hour"})
    identity = await cache_of(store).identify(key)
    assert identity.scopes == {Scope.READ}
    assert identity.limits == {"uploads": "50/hour"}
    assert identity.name == f"key:{key.split('_')[1]}"
    async with authenticated_gateway(store) as gateway:
        refused(await gateway.bearer(key), 403, "forbidden")


def test_limits_of_keys_have_every_kind() -> None:
    """A key can have a limit of every kind, and of no other; every valid rate can be parsed."""
    assert set(get_args(LimitKind)) == set(rate_limits.KINDS)
    for rate in ("50/hour", "10/minute; 50/hour", "none"):
        NewKey(owner="anna", limits={"uploads": rate})
        parse_limits(rate)
    for rate in ("", "0/hour", "50", "50/hour;", "50 / fortnight", "-1/hour"):
        with pytest.raises(ValueError, match="limits"):
            NewKey(owner="anna", limits={"uploads": rate})


def test_keys_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command creates, lists and revokes keys in the store itself, and shows a secret once."""
    monkeypatch.setenv("DARKROOM_FILES__DIRECTORY", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    run = CliRunner()
    assert "No keys." in run.invoke(keys.app, ["list"]).stdout
    wish = ["create", "--owner", "anna", "--scope", "images:read", "--limit", "requests=5/second", "--days", "30"]
    created = run.invoke(keys.app, wish)
    assert created.exit_code == 0, created.output
    key = created.stdout.split()[0]
    key_id, secret = re.fullmatch(r"dk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", key).groups()  # type: ignore[union-attr]
    listed = run.invoke(keys.app, ["list"]).stdout
    for shown in (key_id, "anna", "images:read", "active", "requests 5/second"):
        assert shown in listed
    assert secret not in listed
    assert run.invoke(keys.app, ["revoke", key_id]).exit_code == 0
    assert "revoked" in run.invoke(keys.app, ["list"]).stdout
    assert run.invoke(keys.app, ["revoke", "0" * 16]).exit_code == 1
    for wrong in (
        ["--owner", "../anna"],
        ["--owner", "anna", "--limit", "uploads"],
        ["--owner", "a", "--scope", "all"],
    ):
        assert run.invoke(keys.app, ["create", *wrong]).exit_code == 2
