"""API keys at the door: made, shown once, used, limited, revoked; and who gets in where nothing is set up."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from fastapi import Request
from pydantic import ValidationError
from pydantic_settings import SettingsError
from structlog.testing import capture_logs
from typer.testing import CliRunner

from darkroom import keys_cli
from darkroom.gateways import GatewayEnvironment
from darkroom.workers import explain
from gateway import limits
from gateway.api_keys import ApiKeys, KeyRefused, KnownKeys, TooManyKeys
from gateway.app import embedded_app
from gateway.auth import open_door
from gateway.auth_settings import AuthSettings
from gateway.client import AsyncDarkroom, Darkroom, Refused
from gateway.fresh import Fresh
from gateway.identity import Identity, Scope
from gateway.parts import QueryParts
from schemas.http_keys import KeyCreated, KeyList, KeyState, KeyView, LimitKind, NewKey
from streams.errors import DependencyAway, NotReady
from streams.files import FileStore
from streams.settings import QdrantSettings
from streams.vectors import open_read_model
from tests.security.door import HERE, house, rsa_pair, secret_pair, token, trusting
from tests.unit.gateway_parts import Answers, Encoder, FrailFiles, Sink, refused, settings

ADMIN_TOKEN = "correct horse battery"
KEYS = "/api/v1/admin/keys"
RSA, SHARED = rsa_pair("rsa-1"), secret_pair("hs-1")


async def made(store: FileStore, owner: str = "anna", **more: Any) -> str:
    """Make a key right in the store; return it."""
    return (await ApiKeys(store).create(NewKey(owner=owner, **more)))[1]


def knowing(store: FileStore) -> KnownKeys:
    """Return what a gateway knows of keys, looked up anew for each question."""
    return KnownKeys(ApiKeys(store), fresh_s=1e-9, timeout_s=10, apart_s=0)


async def test_a_key_opens_its_owners_images(store: FileStore) -> None:
    """A key is taken as a bearer token and as X-API-Key, and opens its owner's images."""
    key = await made(store)
    async with house(store) as gateway:
        assert await gateway.let_in(key) == "anna"
        assert (await gateway.knock(X_API_Key=key)).status_code == 202


async def test_nothing_stored_is_a_key(store: FileStore) -> None:
    """What is stored of a key holds neither the key nor its secret, and opens nothing."""
    key = await made(store)
    secret = key.split("_", 2)[2]
    (stored,) = [info.key async for info in store.list("keys/")]
    text = (await store.get(stored)).decode()
    assert secret not in text
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert digest in text
    async with house(store) as gateway:
        await gateway.kept_out(key.replace(secret, digest))
        await gateway.kept_out(digest)


def mutilated(key: str) -> list[str]:
    """Return what looks like a key and is none."""
    _, key_id, secret = key.split("_", 2)
    flipped = ("A" if secret[0] != "A" else "B") + secret[1:]
    return [
        f"dk_{key_id}_{flipped}", f"dk_{'0' * 16}_{secret}", f"dk_{key_id}_", f"dk_{key_id}", "dk_", "dk__", f"{key}x",
        key[:-1], key.upper(), f"dk_{key_id.upper()}_{secret}", secret, f"dk_../{key_id}_{secret}", f"dk_*_{secret}",
        f"dk_{key_id}.json_{secret}", f"dk_{key_id}%00_{secret}", f"dk_{key_id}_{secret}\u00e9",
    ]  # fmt: skip


async def test_what_is_not_quite_a_key_opens_nothing(store: FileStore) -> None:
    """A wrong secret, another id, and whatever else is not the very key, are refused in the same words."""
    key = await made(store)
    async with house(store) as gateway:
        for wrong in mutilated(key):
            for header in ({"Authorization": f"Bearer {wrong}".encode()}, {"X_API_Key": wrong.encode()}):
                answer = await gateway.knock(**header)  # type: ignore[arg-type]
                assert refused(answer, 401, "unauthorized").detail == "The credentials are not valid."
        assert not gateway.sink.sent
        assert await gateway.let_in(key) == "anna"


async def test_one_owners_key_has_not_anothers_secret(store: FileStore) -> None:
    """The secret of one key opens nothing under another key's id."""
    (_, anna, _), (_, _, bert) = (await made(store)).split("_", 2), (await made(store, "bert")).split("_", 2)
    async with house(store) as gateway:
        await gateway.kept_out(f"dk_{anna}_{bert}")


async def test_an_expired_key_says_so_to_its_bearer(store: FileStore) -> None:
    """An expired key opens nothing; that it expired is told only to who has its secret."""
    key = await made(store, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    later = await made(store, expires_at=datetime.now(UTC) + timedelta(hours=1))
    async with house(store) as gateway:
        await gateway.kept_out(key, expired=True)
        await gateway.kept_out(mutilated(key)[0])
        assert await gateway.let_in(later) == "anna"


async def test_a_revoked_key_opens_nothing(store: FileStore) -> None:
    """A key that is revoked is refused by gateways that knew it, and stays so however often that is asked."""
    keys, known = ApiKeys(store), knowing(store)
    key, secret = await keys.create(NewKey(owner="anna"))
    assert (await known.identify(secret)).owner == "anna"
    first = await keys.revoke(key.id)
    assert first is not None
    assert first.state is KeyState.REVOKED
    assert await keys.revoke(key.id) == first
    with pytest.raises(KeyRefused) as refusal:
        await known.identify(secret)
    assert not refusal.value.expired


async def test_a_new_key_is_taken_at_once(store: FileStore) -> None:
    """A key that is made while a gateway runs is taken the first time it is sent."""
    known = KnownKeys(ApiKeys(store), fresh_s=60, timeout_s=10)
    for owner in ("anna", "bert"):
        assert (await known.identify(await made(store, owner))).owner == owner


async def test_unknown_keys_do_not_hammer_the_store() -> None:
    """However many names that are not there are asked for at once, the source is read once."""
    reads = 0

    async def read() -> dict[str, int]:
        nonlocal reads
        reads += 1
        return {"there": 1}

    table = Fresh("things", read, fresh_s=60, apart_s=60, stale_s=60, timeout_s=10)
    assert [await table.find(f"unknown-{number}") for number in range(100)] == [None] * 100
    assert await table.find("there") == 1
    assert reads == 1


async def test_a_store_that_is_away_keeps_no_revoked_key_alive_for_long() -> None:
    """What was known is believed for a while without the source; then nothing is, and that is said."""
    now, away = 0.0, False

    async def read() -> dict[str, int]:
        if away:
            raise DependencyAway("no store")
        return {"there": 1}

    table = Fresh("things", read, fresh_s=3, apart_s=1, stale_s=60, timeout_s=10, clock=lambda: now)
    assert await table.find("there") == 1
    away = True
    now = 50.0
    assert await table.find("there") == 1
    now = 61.0
    with pytest.raises(DependencyAway):
        await table.find("there")
    away, now = False, 63.0
    assert await table.find("there") == 1


async def test_an_unreadable_key_opens_nothing(store: FileStore) -> None:
    """An object among the keys that is none is left out, and spoils no other."""
    key = await made(store)
    text = await store.get(f"keys/{key.split('_')[1]}.json")
    await store.put("keys/0123456789abcdef.json", text, content_type="application/json")  # of another id than its name
    await store.put("keys/fedcba9876543210.json", b"{", content_type="application/json")
    known = knowing(store)
    assert (await known.identify(key)).owner == "anna"
    for key_id in ("0123456789abcdef", "fedcba9876543210"):
        with pytest.raises(KeyRefused):
            await known.identify(f"dk_{key_id}_{key.split('_', 2)[2]}")


async def test_keys_are_bounded(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more keys can be made than every gateway can know."""
    monkeypatch.setattr("gateway.api_keys.MAX_KEYS", 2)
    await made(store)
    await made(store)
    with pytest.raises(TooManyKeys):
        await made(store)


async def test_a_key_carries_scopes_and_limits(store: FileStore) -> None:
    """A key may do what its scopes say, and has its own limits where it was given some."""
    key = await made(store, scopes={Scope.READ}, limits={"uploads": "50/hour"})
    identity = await knowing(store).identify(key)
    assert (identity.scopes, identity.limits, identity.name) == (
        {Scope.READ}, {"uploads": "50/hour"}, f"key:{key.split('_')[1]}"
    )  # fmt: skip
    async with house(store) as gateway:
        refused(await gateway.bearer(key), 403, "forbidden")


def test_limits_of_keys_are_those_there_are() -> None:
    """A key can have a limit of every kind there is, and of no other; each rate it can have can be read."""
    assert set(get_args(LimitKind)) == set(limits.KINDS)
    for rate in ("50/hour", "10/minute; 50/hour", "none"):
        NewKey(owner="anna", limits={"uploads": rate})
        limits.parse_limits(rate)
    for rate in ("", "0/hour", "50", "50/hour;", "50 / fortnight", "-1/hour"):
        with pytest.raises(ValueError, match="limits"):
            NewKey(owner="anna", limits={"uploads": rate})


def test_a_wrong_secret_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that is secret, or holds secrets, is named when it is wrong, and what it is stays out of the log."""
    secret = "hunter2"
    key = {"kid": "a", "algorithm": "HS256", "key": secret}
    for name, value in (
        ("DARKROOM_GATEWAY__ADMIN_TOKEN", secret),
        ("DARKROOM_AUTH__KEYS", json.dumps([{**key, "file": "x"}])),
        ("DARKROOM_AUTH__KEYS", json.dumps([key])),
        ("DARKROOM_AUTH__KEYS", json.dumps(key)[:-1]),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises((ValidationError, SettingsError)) as wrong:
                GatewayEnvironment()
        assert explain(wrong.value) == 2
        said = capsys.readouterr().err
        assert secret not in said
        assert "AUTH" in said.upper() or name in said


# The ways to say who asks


async def test_credentials_are_sent_once(store: FileStore) -> None:
    """Credentials sent in two ways at once are refused: nobody guesses which of them counts."""
    key, other = await made(store), await made(store, "bert")
    async with house(store) as gateway:
        for headers in (
            [("Authorization", f"Bearer {key}"), ("X-API-Key", other)],
            [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {other}")],
            [("X-API-Key", key), ("X-API-Key", other)],
        ):
            answer = await gateway.client.post("/api/v1/images/fetch", json={}, headers=headers)
            refused(answer, 401, "unauthorized")
            assert 'error="invalid_request"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("header", ["Basic YW5uYTpzZWNyZXQ=", "Digest x", "Bearer", "Bearer ", "", "token"])
async def test_what_is_sent_is_always_checked(store: FileStore, header: str) -> None:
    """On an open gateway, credentials that are none are refused: who sends some means to be known by them."""
    async with house(store) as gateway:
        assert (await gateway.knock()).status_code == 202
        refused(await gateway.knock(Authorization=header), 401, "unauthorized")
        refused(await gateway.knock(X_API_Key=header), 401, "unauthorized")
        refused(await gateway.knock(X_API_Key=ADMIN_TOKEN), 401, "unauthorized")


async def test_who_sends_nothing_is_told_what_to_send(store: FileStore) -> None:
    """Without credentials where some are needed the answer names the scheme, and no error (RFC 6750)."""
    await made(store)
    async with house(store) as gateway:
        answer = await gateway.knock()
    refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == 'Bearer realm="darkroom"'


async def test_the_operators_token_operates(store: FileStore) -> None:
    """The operators' token opens the admin API, and nobody's images."""
    async with house(store, admin_token=ADMIN_TOKEN, host="0.0.0.0") as gateway:
        answer = await gateway.bearer(ADMIN_TOKEN)
        refused(answer, 403, "forbidden")
        assert 'scope="images:write"' in answer.headers["www-authenticate"]
        await gateway.kept_out(f"{ADMIN_TOKEN}x")


# Who gets in where nothing is set up

HOSTS = ("0.0.0.0", "::", "192.0.2.7", "darkroom.example")


@pytest.mark.parametrize("host", HOSTS)
async def test_a_gateway_others_can_reach_does_not_start_unprotected(store: FileStore, host: str) -> None:
    """Bound to any address but a loopback one, without anything to tell callers by, a gateway refuses to start."""
    with pytest.raises(NotReady, match=re.escape(host)) as refusal:
        async with house(store, host=host):
            pass
    for remedy in ("darkroom keys create", "DARKROOM_AUTH__KEYS", "DARKROOM_GATEWAY__ADMIN_TOKEN", "127.0.0.1"):
        assert remedy in str(refusal.value)


@pytest.mark.parametrize("way", ["token key", "JWK set", "admin token", "API key"])
async def test_each_way_to_tell_callers_lets_it_start_closed(store: FileStore, way: str) -> None:
    """With any of them it starts on any address, and lets in nobody without credentials."""
    auth: dict[str, Any] = {}
    own: dict[str, Any] = {"host": "0.0.0.0"}
    if way == "token key":
        auth = trusting(SHARED)
    elif way == "JWK set":
        auth = {**trusting(), "jwks_url": "https://login.example.org/keys"}
    elif way == "admin token":
        own["admin_token"] = ADMIN_TOKEN
    else:
        await made(store)
    async with house(store, auth, **own) as gateway:
        refused(await gateway.knock(), 401, "unauthorized")


@pytest.mark.parametrize("way", ["token key", "API key", "revoked key"])
async def test_keys_close_a_gateway_on_loopback_too(store: FileStore, way: str) -> None:
    """Where keys are in use, this machine needs some too, also when the last one was revoked."""
    auth = trusting(SHARED) if way == "token key" else {}
    if way != "token key":
        key = await made(store)
        if way == "revoked key":
            await ApiKeys(store).revoke(key.split("_")[1])
    async with house(store, auth) as gateway:
        refused(await gateway.knock(), 401, "unauthorized")


async def test_a_gateway_can_be_told_to_ask(store: FileStore) -> None:
    """With the setting that requires credentials a loopback address is closed too, and needs a way to have some."""
    with pytest.raises(NotReady, match="DARKROOM_AUTH__REQUIRED"):
        async with house(store, {"required": True}):
            pass
    async with house(store, {"required": True}, admin_token=ADMIN_TOKEN) as gateway:
        refused(await gateway.knock(), 401, "unauthorized")


async def test_an_open_gateway_says_so_at_its_start(store: FileStore) -> None:
    """An open gateway writes into its log that it is, and a closed one what it takes; neither writes a secret."""
    with capture_logs() as logs:
        async with house(store), house(store, trusting(SHARED), admin_token=ADMIN_TOKEN):
            pass
    assert [(entry["log_level"], "open" in entry["event"]) for entry in logs] == [("warning", True), ("info", False)]
    assert logs[1]["taken"] == ["JWT", "admin token"]
    assert ADMIN_TOKEN not in str(logs)
    assert SHARED.public not in str(logs)


PAGES = {
    "a rebound name": ("http://rebound.example:8080", {}),
    "another site": (HERE, {"Origin": "https://evil.example"}),
    "a sandboxed frame or a file": (HERE, {"Origin": "null"}),
    "another port here": (HERE, {"Origin": "http://127.0.0.1:9999"}),
    "this host under another name": (HERE, {"Origin": "http://localhost:8080"}),
    "a form without an origin": (HERE, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
    "a picture in a page": (HERE, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}),
    "a page of another port": (HERE, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}),
}


@pytest.mark.parametrize(("base", "headers"), PAGES.values(), ids=PAGES)
async def test_a_web_page_cannot_use_an_open_gateway(store: FileStore, base: str, headers: dict[str, str]) -> None:
    """A page of another site, in a browser of this machine, gets nothing in, whatever it does."""
    async with house(store) as gateway:
        gateway.client.base_url = httpx.URL(base)
        refused(
            await gateway.knock(**{name.replace("-", "_"): value for name, value in headers.items()}), 403, "forbidden"
        )
        assert not gateway.sink.sent


@pytest.mark.parametrize("base", [HERE, "http://localhost:8080", "http://[::1]:8080"])
async def test_programs_and_pages_of_this_machine_use_an_open_gateway(store: FileStore, base: str) -> None:
    """A program here, and the gateway's own page, need nothing."""
    async with house(store) as gateway:
        gateway.client.base_url = httpx.URL(base)
        for headers in ({}, {"Origin": base, "Sec_Fetch_Site": "same-origin"}):
            assert (await gateway.knock(**headers)).status_code == 202


# Operators


@dataclass
class Office:
    """An embedded gateway whose operators have a token."""

    client: httpx.AsyncClient
    store: FileStore
    asked: list[Identity] = field(default_factory=list)


@pytest.fixture
async def office(store: FileStore, tmp_path: Path) -> AsyncIterator[Office]:
    """Open the office, on an address that others can reach."""
    async with open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as vectors, _office(store, vectors) as found:
        yield found


@asynccontextmanager
async def _office(store: FileStore, vectors: Any) -> AsyncIterator[Office]:
    own = settings(host="0.0.0.0", admin_token=ADMIN_TOKEN)
    asked: list[Identity] = []
    door = await open_door(own, AuthSettings(), store)

    class Remembering:
        async def identify(self, request: Request) -> Identity:
            asked.append(await door.identify(request))
            return asked[-1]

    parts = QueryParts(
        files=FrailFiles(store),  # type: ignore[arg-type]
        events=Sink(),
        vectors=vectors,
        encoder=Encoder(),
        readiness=Answers(),
    )
    app = embedded_app(own, replace(parts, authenticator=Remembering()))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://darkroom.example", headers=headers) as client:
        yield Office(client, store, asked)


async def test_operators_make_list_and_revoke_keys(office: Office) -> None:
    """A key's secret is answered once; lists never have it; a revoked key is shown as that, and opens nothing."""
    asked = {"owner": "anna", "scopes": ["images:read"], "name": "reader", "limits": {"requests": "10/second"}}
    answer = await office.client.post(KEYS, json=asked)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    key = KeyCreated.model_validate_json(answer.content)
    assert (key.owner, key.scopes, key.name, key.state) == ("anna", (Scope.READ,), "reader", KeyState.ACTIVE)
    listed = await office.client.get(KEYS)
    assert [found.id for found in KeyList.model_validate_json(listed.content).keys] == [key.id]
    secret = key.key.split("_", 2)[2]
    for text in (secret, hashlib.sha256(secret.encode()).hexdigest(), "sha256"):
        assert text not in listed.text
    revoked = KeyView.model_validate_json((await office.client.delete(f"{KEYS}/{key.id}")).content)
    assert revoked.state is KeyState.REVOKED
    again = await office.client.delete(f"{KEYS}/{key.id}")
    assert KeyView.model_validate_json(again.content) == revoked
    for unknown in ("0" * 16, "x", f"{key.id}.json", "..%2Fjobs"):
        refused(await office.client.delete(f"{KEYS}/{unknown}"), 404, "not-found")
    async with house(office.store) as gateway:
        await gateway.kept_out(key.key)


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({}, "owner"),
        ({"owner": "../anna"}, "owner"),
        ({"owner": "anna", "scopes": []}, "scopes"),
        ({"owner": "anna", "scopes": ["everything"]}, "scopes.0"),
        ({"owner": "anna", "name": "a\nb"}, "name"),
        ({"owner": "anna", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"owner": "anna", "expires_at": "2999-01-01T00:00:00"}, "expires_at"),
        ({"owner": "anna", "limits": {"uploads": "lots"}}, "limits.uploads"),
    ],
)
async def test_a_wrong_wish_for_a_key_names_its_field(office: Office, asked: dict[str, Any], where: str) -> None:
    """What is not understood is refused with its field, and no key comes of it."""
    problem = refused(await office.client.post(KEYS, json=asked), 422, "invalid-field")
    assert [item.field for item in problem.errors] == [where]
    problem = refused(await office.client.post(KEYS, json={"owner": "anna", "secret": "x"}), 400, "unknown-field")
    assert [item.field for item in problem.errors] == ["secret"]
    assert not await ApiKeys(office.store).any()


async def test_a_key_may_operate(office: Office) -> None:
    """An API key with the scope of operators makes keys; one without does not."""
    for scope, status in ((Scope.ADMIN, 201), (Scope.WRITE, 403)):
        key = await made(office.store, "anna", scopes={scope})
        answer = await office.client.post(KEYS, json={"owner": "bert"}, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == status


async def test_what_operators_do_and_who_is_refused_is_in_the_log(office: Office) -> None:
    """Each act of an operator and each refusal leaves a line that says who and what, and holds no secret."""
    key = await made(office.store, "anna", scopes={Scope.READ})
    with capture_logs() as logs:
        await office.client.post(KEYS, json={"owner": "bert"})
        await office.client.get(KEYS)
        await office.client.post(KEYS, json={"owner": "bert"}, headers={"Authorization": f"Bearer {key}"})
        await office.client.post(KEYS, json={"owner": "bert"}, headers={"Authorization": f"Bearer {key}x"})
        await office.client.post(KEYS, json={"owner": "bert"}, headers={"Authorization": ""})
    acts = [entry for entry in logs if entry["event"] == "an operator acts"]
    assert [(entry["method"], entry["path"], entry["by"]) for entry in acts] == [("POST", KEYS, "admin-token")]
    refusals = [entry for entry in logs if entry["event"] == "a caller is refused"]
    assert [(entry["why"], entry["by"]) for entry in refusals] == [
        ("insufficient-scope", f"key:{key.split('_')[1]}"), ("invalid", None), ("invalid", None)
    ]  # fmt: skip
    assert key.split("_", 2)[2] not in str(logs)
    assert ADMIN_TOKEN not in str(logs)


async def test_the_document_says_what_each_operation_asks_for(office: Office) -> None:
    """The API's document has both ways to send credentials, and each operation's scope, or that it asks for none."""
    document = (await office.client.get("/openapi.json")).json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer"
    assert (schemes["apiKey"]["in"], schemes["apiKey"]["name"]) == ("header", "X-API-Key")
    upload = document["paths"]["/api/v1/images/upload"]["post"]["security"]
    assert upload == [{"bearer": ["images:write"]}, {"apiKey": ["images:write"]}]
    assert document["paths"]["/health/live"]["get"]["security"] == []


# Those who ask


async def test_the_client_says_who_it_is(store: FileStore) -> None:
    """The client sends a token or a key, and is refused without them."""
    key = await made(store)
    async with house(store, trusting(SHARED)) as gateway:
        transport = gateway.client._transport
        for who in ({"token": token(SHARED)}, {"token": key}, {"api_key": key}):
            async with AsyncDarkroom(HERE, transport=transport, **who) as client:
                assert (await client.submit("https://example.org/cat.jpg")).job_id
        async with AsyncDarkroom(HERE, transport=transport) as client:
            with pytest.raises(Refused, match="401"):
                await client.submit("https://example.org/cat.jpg")
    with pytest.raises(ValueError, match="not both"):
        Darkroom(HERE, token="a", api_key="b")


def test_keys_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command makes, lists and revokes keys in the store itself, and shows a secret once."""
    monkeypatch.setenv("DARKROOM_FILES__DIRECTORY", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    run = CliRunner()
    assert "No keys." in run.invoke(keys_cli.app, ["list"]).stdout
    wish = ["create", "--owner", "anna", "--scope", "images:read", "--limit", "requests=5/second", "--days", "30"]
    created = run.invoke(keys_cli.app, wish)
    assert created.exit_code == 0, created.output
    key = created.stdout.split()[0]
    key_id, secret = re.fullmatch(r"dk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", key).groups()  # type: ignore[union-attr]
    listed = run.invoke(keys_cli.app, ["list"]).stdout
    for shown in (key_id, "anna", "images:read", "active", "requests 5/second"):
        assert shown in listed
    assert secret not in listed
    assert run.invoke(keys_cli.app, ["revoke", key_id]).exit_code == 0
    assert "revoked" in run.invoke(keys_cli.app, ["list"]).stdout
    assert run.invoke(keys_cli.app, ["revoke", "0" * 16]).exit_code == 1
    for wrong in (
        ["--owner", "../anna"],
        ["--owner", "anna", "--limit", "uploads"],
        ["--owner", "a", "--scope", "all"],
    ):
        assert run.invoke(keys_cli.app, ["create", *wrong]).exit_code == 2
