"""Lookups of credentials that no cached key matches: bounded, remembered, and the same for every wrong key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.access.api_keys import ApiKeys, KeyRefused, KnownKeys
from gateway.access.unknown_keys import PLACES, REFUSED_S, REMEMBERED, UnknownKeys
from schemas.http.keys import NewKey
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings


@dataclass
class CountedFiles:
    """A store that counts reads and listings of keys, and holds reads back while `open` is clear."""

    files: FileStore
    reads: list[str] = field(default_factory=list)
    listings: int = 0
    reading: int = 0
    most_reading: int = 0
    unavailable: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    def list(self, prefix: str) -> Any:
        self.listings += 1
        return self.files.list(prefix)

    async def get(self, key: str, **more: Any) -> bytes:
        if self.unavailable:
            raise DependencyUnavailable("no store")
        self.reads.append(key)
        self.reading += 1
        self.most_reading = max(self.most_reading, self.reading)
        try:
            await self.open.wait()
            return await self.files.get(key, **more)
        finally:
            self.reading -= 1


@dataclass
class Clock:
    """A clock that moves only by assignment."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def files(tmp_path: Path) -> Any:
    async with open_files(FilesSettings(directory=tmp_path)) as found:
        yield CountedFiles(found)


def made_up(number: int) -> str:
    """Return a well-formed key that does not exist."""
    return f"dk_{number:016x}_{'A' * 43}"


async def refused(known: KnownKeys, given: str) -> None:
    """Assert that a key is refused."""
    with pytest.raises(KeyRefused):
        await known.identify(given)


async def created(files: CountedFiles) -> str:
    """Create a key in the store; return it."""
    return (await ApiKeys(files.files).create(NewKey(owner="anna")))[1]


def cache(files: CountedFiles, **more: Any) -> KnownKeys:
    """Return a gateway's cache of keys that is fresh for an hour."""
    return KnownKeys(ApiKeys(files), fresh_s=3600, timeout_s=60, **more)  # type: ignore[arg-type]


async def test_an_unknown_id_costs_as_much_as_a_wrong_secret(files: CountedFiles) -> None:
    """Either is looked up once, by one read of one object, and refused without a read when it is sent again."""
    key = await created(files)
    known = cache(files)
    await known.identify(key)
    files.reads.clear()
    listings = files.listings
    wrong = f"{key[:-1]}{'A' if key[-1] != 'A' else 'B'}"
    for given in (made_up(1), wrong):
        for _ in range(5):
            await refused(known, given)
    assert files.reads == [f"keys/{given.split('_')[1]}.json" for given in (made_up(1), wrong)]
    assert files.listings == listings


async def test_unknown_keys_do_not_delay_known_ones(files: CountedFiles) -> None:
    """While lookups of unknown keys hang, at most PLACES of them, a known key is identified without waiting."""
    key = await created(files)
    known = cache(files)
    await known.identify(key)
    files.open.clear()
    unknown = [asyncio.create_task(refused(known, made_up(number))) for number in range(10 * PLACES)]
    while files.reading < PLACES:
        await asyncio.sleep(0)
    assert (await asyncio.wait_for(known.identify(key), 30)).owner == "anna"
    files.open.set()
    await asyncio.gather(*unknown)
    assert files.most_reading == PLACES


async def test_a_key_created_after_its_refusal_is_accepted_a_second_later(files: CountedFiles) -> None:
    """A refusal is remembered for REFUSED_S, not longer."""
    key = await created(files)
    path = f"keys/{key.split('_')[1]}.json"
    stored = await files.files.get(path)
    await files.files.delete(path)
    clock = Clock()
    known = cache(files, unknown=UnknownKeys(clock=clock))
    await refused(known, key)
    await files.files.put(path, stored, content_type="application/json")
    await refused(known, key)
    clock.now += REFUSED_S
    assert (await known.identify(key)).owner == "anna"
    files.reads.clear()
    await known.identify(key)
    assert not files.reads, "it is in the cache"


async def test_without_a_free_place_a_new_key_is_found_by_the_listing(files: CountedFiles) -> None:
    """While all places are taken, the keys are listed again for all waiting requests together."""
    known = cache(files, unknown=UnknownKeys(places=0), apart_s=0)
    await refused(known, made_up(1))
    assert (await known.identify(await created(files))).owner == "anna"


async def test_a_store_that_does_not_answer_refuses_nothing(files: CountedFiles) -> None:
    """While the store is unavailable an unknown key may be a new one: the lookup fails, and is not remembered."""
    known = cache(files)
    await refused(known, made_up(1))
    key = await created(files)
    files.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await known.identify(key)
    files.unavailable = False
    assert (await known.identify(key)).owner == "anna"


def test_remembered_refusals_are_bounded() -> None:
    """Beyond REMEMBERED the oldest refusal is dropped."""
    unknown = UnknownKeys(clock=Clock())
    for number in range(REMEMBERED + 1):
        unknown.refuse(str(number), "digest")
    assert not unknown.was_refused("0", "digest")
    assert unknown.was_refused("1", "digest")
    assert unknown.was_refused(str(REMEMBERED), "digest")
