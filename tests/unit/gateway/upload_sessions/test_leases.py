"""Leases of uploads: what ends them, and what their requests then answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.upload_sessions import leases
from gateway.upload_sessions.leases import LEASE_S, Lease, distributed_lease
from schemas.values import new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.keys import finishing_prefix
from streams.settings import FilesSettings
from tests.support.gateway_components import FaultyFiles


class Clock:
    """A clock that tests advance."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    """A real object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as store:
        yield FaultyFiles(store)


@pytest.fixture(autouse=True)
def _renewed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_RENEW_EVERY_S", 0.001)


async def test_a_lease_that_expires_unrenewed_ends_its_work(files: FaultyFiles) -> None:
    """While the store does not answer the lease expires: the work is cancelled, and 503 is answered."""
    clock, cancelled = Clock(), False
    with pytest.raises(DependencyUnavailable, match="expired"):
        async with distributed_lease(files, finishing_prefix("default", new_image_id()), clock=clock):
            files.unavailable = True
            clock.now += LEASE_S
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled = True
                raise
    assert cancelled
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_stopped_process_does_not_renew_a_lease_that_another_gateway_may_own(files: FaultyFiles) -> None:
    """A gateway that stood still past the expiry finds its lease lost, though the store answers, and leaves it."""
    clock, prefix, owned = Clock(), finishing_prefix("default", new_image_id()), asyncio.Event()

    async def complete() -> None:
        async with distributed_lease(files, prefix, clock=clock):
            owned.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(complete())
    await owned.wait()
    clock.now += LEASE_S
    with pytest.raises(DependencyUnavailable, match="expired"):
        await task
    assert float(await files.get(f"{prefix}000001")) == 1000.0 + LEASE_S


async def test_a_renewed_lease_outlives_its_first_expiry(files: FaultyFiles) -> None:
    """Renewals move the expiry, and a failed one in between is repeated."""
    clock, prefix = Clock(), finishing_prefix("default", new_image_id())
    async with distributed_lease(files, prefix, clock=clock):
        for failing in (False, True, False):
            files.unavailable = failing
            clock.now += LEASE_S / 4
            await asyncio.sleep(0.005)
            if not failing:
                async with asyncio.timeout(60):
                    while float(await files.get(f"{prefix}000001")) != clock.now + LEASE_S:
                        await asyncio.sleep(0.001)


async def test_an_error_of_the_work_itself_passes_unchanged(files: FaultyFiles) -> None:
    """A TimeoutError of the work is not taken for a lost lease."""
    with pytest.raises(TimeoutError, match="own"):
        async with distributed_lease(files, finishing_prefix("default", new_image_id())):
            raise TimeoutError("own")


async def test_two_requests_may_preempt_the_same_read() -> None:
    """The second preemption finds the read already ending, and is no error."""
    lease, reading = Lease(), asyncio.Event()

    async def read() -> None:
        async with lease.client_read(60):
            reading.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await reading.wait()
    lease.preempt()
    await asyncio.sleep(0)  # the read's timeout has fired, its task has not run yet
    assert not task.done()
    lease.preempt()
    with pytest.raises(TimeoutError):
        await task
