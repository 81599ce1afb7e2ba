"""API keys: `dk_<id>_<secret>`. Of the secret, 256 random bits, only the SHA-256 is stored, in `keys/{id}.json`.

A slow hash is not needed: 256 random bits cannot be guessed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from pydantic import AwareDatetime, Field, ValidationError

from gateway.access.identity import Identity
from gateway.access.ttl_cache import TtlCache
from gateway.access.unknown_keys import UnknownKeys
from schemas.http.keys import KeyState, NewKey, Scope
from schemas.values import OWNER_PATTERN, SHA256_PATTERN, Owner, Value
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore, ObjectInfo, ObjectMissing

KEYS = "keys/"
PREFIX = "dk_"
MAX_KEYS = 10_000  # every process caches all of them
KEY_BYTES = 1 << 16
ID_PATTERN = r"^[0-9a-f]{16}$"
_KEY = re.compile(r"dk_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_PARALLEL = 16  # reads of the store at once
_JSON = "application/json"
APART_S = 0.5  # minimum between two listings of the store, however many unknown keys are sent
_STALE_S = 60.0  # longest time a revoked key stays valid while the store is unavailable
_NO_SECRET = "0" * 64  # compared with for an unknown id, so that the response takes as long

log = structlog.get_logger(__name__)


class ApiKey(Value):
    """A stored key."""

    id: str = Field(pattern=ID_PATTERN)
    owner: str = Field(pattern=OWNER_PATTERN)
    scopes: frozenset[Scope]
    name: str = ""
    secret_sha256: str = Field(pattern=SHA256_PATTERN)
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    limits: dict[str, str] = Field(default_factory=dict)

    @property
    def state(self) -> KeyState:
        """Whether the key is valid now."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        expired = self.expires_at is not None and self.expires_at <= datetime.now(UTC)
        return KeyState.EXPIRED if expired else KeyState.ACTIVE


class KeyRefused(Exception):
    """Invalid API key. `expired` is set only if the secret is right."""

    def __init__(self, *, expired: bool = False) -> None:
        super().__init__("expired" if expired else "invalid")
        self.expired = expired


class TooManyKeys(Exception):
    """The number of keys has reached its maximum."""


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys in the object store. Methods raise DependencyUnavailable."""

    files: FileStore

    async def create(self, request: NewKey) -> tuple[ApiKey, str]:
        """Store a new key; return it and its secret form, which is not stored. Raises TooManyKeys."""
        if len([info async for info in self.files.list(KEYS)]) >= MAX_KEYS:
            raise TooManyKeys(f"there are {MAX_KEYS} keys already")
        key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        created = datetime.now(UTC).replace(microsecond=0)
        key = ApiKey(id=key_id, secret_sha256=_hash(secret), created_at=created, **request.model_dump())
        await self._put(key)
        return key, f"{PREFIX}{key_id}_{secret}"

    async def revoke(self, key_id: str) -> ApiKey | None:
        """Revoke a key; return it, None if there is none. Idempotent."""
        if not re.fullmatch(ID_PATTERN, key_id):
            return None
        key = await self.get(key_id)
        if key is not None and key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": datetime.now(UTC).replace(microsecond=0)})
            await self._put(key)
        return key

    async def get(self, key_id: str) -> ApiKey | None:
        """Return a key, None if it is missing or unreadable."""
        try:
            return ApiKey.model_validate_json(await self.files.get(f"{KEYS}{key_id}.json", limit=KEY_BYTES))
        except ObjectMissing:
            return None
        except (ValidationError, ValueError) as error:
            log.warning("unreadable API key object", key_id=key_id, error=type(error).__name__)
            return None

    async def all(self, known: Mapping[str, tuple[str, ApiKey]] | None = None) -> dict[str, tuple[str, ApiKey]]:
        """Return every key by id with its object's ETag; keys `known` by the same ETag are not read again."""
        known = known or {}
        slots = asyncio.Semaphore(_PARALLEL)

        async def read(info: ObjectInfo) -> tuple[str, ApiKey] | None:
            key_id = info.key.removeprefix(KEYS).removesuffix(".json")
            if key_id in known and known[key_id][0] == info.etag:
                return known[key_id]
            async with slots:
                key = await self.get(key_id)
            return (info.etag, key) if key is not None and key.id == key_id else None

        listed = [info async for info in self.files.list(KEYS)]
        if len(listed) > MAX_KEYS:
            log.error("more API keys than the maximum; the excess is ignored", keys=len(listed))
        found = await asyncio.gather(*map(read, listed[:MAX_KEYS]))
        return {pair[1].id: pair for pair in found if pair is not None}

    async def any(self) -> bool:
        """Return whether a key was ever created, also a revoked one."""
        async for _ in self.files.list(KEYS):
            return True
        return False

    async def _put(self, key: ApiKey) -> None:
        await self.files.put(f"{KEYS}{key.id}.json", key.model_dump_json().encode(), content_type=_JSON)


class KnownKeys:
    """A gateway's cache of all keys, reloaded every few seconds, so that a revoked key is soon rejected.

    Known keys are checked in memory. What the cache does not match is looked up in the store, within the bounds of
    `unknown_keys`: a new key is valid at its first use, or while many unknown ones are sent within two seconds.
    """

    def __init__(
        self,
        keys: ApiKeys,
        *,
        fresh_s: float,
        timeout_s: float,
        apart_s: float = APART_S,
        unknown: UnknownKeys | None = None,
    ) -> None:
        self._keys = keys
        self._timeout_s = timeout_s
        self._apart_s = apart_s
        self._unknown = unknown or UnknownKeys()
        self._seen: dict[str, tuple[str, ApiKey]] = {}
        self._table = TtlCache(
            "the API keys", self._read, fresh_s=fresh_s, apart_s=apart_s, stale_s=_STALE_S, timeout_s=timeout_s
        )

    async def identify(self, given: str) -> Identity:
        """Return the identity of a key. Raises KeyRefused and DependencyUnavailable."""
        parts = _KEY.fullmatch(given)
        if parts is None:
            raise KeyRefused
        key_id, digest = parts[1], _hash(parts[2])
        key = _matching(await self._table.current(key_id), digest) or await self._looked_up(key_id, digest)
        if key is None or key.state is KeyState.REVOKED:
            raise KeyRefused
        if key.state is KeyState.EXPIRED:
            raise KeyRefused(expired=True)
        return Identity(Owner(key.owner), key.scopes, f"key:{key.id}", key.limits, key.expires_at)

    async def _looked_up(self, key_id: str, digest: str) -> ApiKey | None:
        """Return a key that the cache lacks, as after its creation; None without, also for a wrong secret."""
        if self._unknown.was_refused(key_id, digest):
            return None
        with self._unknown.place() as admitted:
            if not admitted:
                return _matching(await self._table.current(key_id, fresh_s=self._apart_s), digest)
            try:
                found = await bounded(self._keys.get(key_id), self._timeout_s)
            except TimeoutError as error:
                raise DependencyUnavailable("an API key cannot be read in time") from error
        key = _matching(found if found is not None and found.id == key_id else None, digest)
        if key is None:
            self._unknown.refuse(key_id, digest)
        else:
            self._table.add(key_id, key)
        return key

    async def _read(self) -> dict[str, ApiKey]:
        self._seen = await self._keys.all(self._seen)
        return {key_id: key for key_id, (_, key) in self._seen.items()}


def _matching(key: ApiKey | None, digest: str) -> ApiKey | None:
    """Return the key if the digest is that of its secret. Takes as long without a key."""
    matches = hmac.compare_digest(digest, key.secret_sha256 if key is not None else _NO_SECRET)
    return key if matches else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
