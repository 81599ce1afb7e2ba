"""The fault-injecting proxy before a MinIO: transparent without a toxin, and each toxin has its effect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from infra.local.minio import LocalMinio
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings
from tests.support.tcp_proxy import CALM, Proxy, Toxin, running_proxy

DATA = bytes(range(256)) * 2000


@asynccontextmanager
async def behind_proxy(minio: LocalMinio) -> AsyncIterator[tuple[FileStore, Proxy]]:
    """Open an object store through a proxy."""
    async with running_proxy(minio.endpoint) as proxy:
        settings = FilesSettings(
            endpoint=proxy.endpoint,
            access_key=minio.access_key,
            secret_key=SecretStr(minio.secret_key),
            bucket=minio.bucket,
            timeout_s=5,
        )
        async with open_files(settings) as files:
            yield files, proxy


async def put(files: FileStore, key: str) -> None:
    """Store the data."""
    await files.put(key, DATA, content_type="application/octet-stream")


async def test_a_proxy_without_toxin_changes_nothing(minio: LocalMinio) -> None:
    """Through the proxy an object is written, read, listed, stat'ed and deleted."""
    async with behind_proxy(minio) as (files, _):
        await put(files, "proxy/calm")
        assert await files.get("proxy/calm") == DATA
        known = await files.stat("proxy/calm")
        assert known is not None
        assert known.size == len(DATA)
        assert [found.key async for found in files.list("proxy/calm")] == ["proxy/calm"]
        await files.delete("proxy/calm")
        assert await files.stat("proxy/calm") is None


@pytest.mark.parametrize(
    "toxin",
    [Toxin(unavailable=True), Toxin(reset_every=1), Toxin(error_every=1), Toxin(bytes_per_s=1000), Toxin(latency_s=8)],
    ids=["unavailable", "resets", "errors", "slow answers", "latency"],
)
async def test_a_toxin_makes_the_store_unavailable(toxin: Toxin, minio: LocalMinio) -> None:
    """With each toxin a read raises DependencyUnavailable; without it the same read succeeds."""
    async with behind_proxy(minio) as (files, proxy):
        await put(files, "proxy/toxic")
        proxy.toxin = toxin
        with pytest.raises(DependencyUnavailable):
            await files.get("proxy/toxic")
        proxy.toxin = CALM
        assert await files.get("proxy/toxic") == DATA


async def test_a_full_store_still_reads(minio: LocalMinio) -> None:
    """On a full disk writes fail and reads succeed."""
    async with behind_proxy(minio) as (files, proxy):
        await put(files, "proxy/full")
        proxy.toxin = Toxin(full=True)
        with pytest.raises(DependencyUnavailable):
            await put(files, "proxy/more")
        assert await files.get("proxy/full") == DATA
