"""The faults: each function injects one for its planned duration, heals it, and returns.

A fault that cannot be injected raises NotInjected: it must not look like a survived one.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.storm.schedule import Planned
from tests.storm.uploads import Stream
from tests.storm.world import SESSION_S, WORKERS, World
from tests.support.tcp_proxy import CALM, Toxin

_STRIKE_PATIENCE_S = 90.0
_POLL_S = 0.1


class NotInjected(Exception):
    """The fault could not be injected."""


@dataclass(slots=True)
class Field:
    """The system under test, and what the checks must know about the faults."""

    world: World
    stream: Stream
    child_deaths: list[tuple[float, str]] = field(default_factory=list)  # unix seconds, error code of its image
    poison: list[tuple[str, bytes]] = field(default_factory=list)  # agent and value: each must be dead-lettered
    markers: int = 0  # offsets of transaction markers


Kind = Callable[[Field, Planned], Awaitable[None]]


async def kill(at: Field, fault: Planned) -> None:
    """Kill a process with SIGKILL, at the point of its work that the target names, else at once."""
    name, _, point = fault.target.partition(" ")
    world = at.world
    pid = await running(world, name)
    if not point:
        world.supervisor.kill(name)
        return
    file = world.strike_file(name)
    draft = file.with_name(f".{name}.draft")
    draft.write_text(point)
    draft.replace(file)
    deadline = time.monotonic() + _STRIKE_PATIENCE_S
    try:
        while world.pid(name) == pid:
            if time.monotonic() > deadline:
                raise NotInjected(f"{name} never reached {point}")
            await send_work(at, name, new_pixels=point == "after-object")
            await wait_until(lambda: world.pid(name) != pid, 8)
    finally:
        file.unlink(missing_ok=True)


async def send_work(at: Field, name: str, *, new_pixels: bool = False) -> None:
    """Send an image for an agent; `new_pixels` forces a computation instead of a stored result."""
    content = at.stream.next_fresh(for_faults=True) if new_pixels else at.stream.some(len(at.stream.diary))
    if name == "fetcher":
        await at.stream.fetch(content, "core" if at.world.pid("core") else "ingest")
    else:
        await at.stream.upload(content, "ingest" if at.world.pid("ingest") else "core")


async def terminate(at: Field, fault: Planned) -> None:
    """Send SIGTERM during work."""
    await asyncio.gather(*(send_work(at, fault.target) for _ in range(3)))
    pid = await running(at.world, fault.target)
    at.world.supervisor.kill(fault.target, signal.SIGTERM)
    if not await wait_until(lambda: at.world.pid(fault.target) != pid, 60):
        raise NotInjected(f"{fault.target} did not exit")


async def zombie(at: Field, fault: Planned) -> None:
    """Suspend a worker past its session timeout, so that another takes over; then resume it."""
    world, name = at.world, fault.target
    second = world.start_second(name) if name in WORKERS else None
    if second is not None and not await world.until_members({name: 2}, patience_s=90):
        raise NotInjected(f"no second {name} joined")
    await send_work(at, name)
    await running(world, name)
    world.supervisor.kill(name, signal.SIGSTOP)
    try:
        await asyncio.sleep(max(fault.duration_s, SESSION_S + 2))
    finally:
        world.supervisor.kill(name, signal.SIGCONT)
    if second is not None:
        await asyncio.sleep(2)
        await second.stop(20)


async def rebalance_storm(at: Field, fault: Planned) -> None:
    """Make a second worker of an agent join and leave repeatedly."""
    deadline = time.monotonic() + fault.duration_s
    while time.monotonic() < deadline:
        second = at.world.start_second(fault.target)
        await at.world.until_members({fault.target: 2}, patience_s=20)
        await send_work(at, fault.target)
        await asyncio.sleep(1)
        await second.stop(20)


async def store_killed(at: Field, fault: Planned) -> None:
    """Kill MinIO with SIGKILL and restart it after the duration."""
    at.world.minio.kill()
    try:
        await asyncio.sleep(fault.duration_s)
    finally:
        await at.world.minio.restart()


def store(toxin: Toxin) -> Kind:
    """Return a fault that sets a toxin on the store's proxy."""

    async def inject(at: Field, fault: Planned) -> None:
        at.world.proxy.toxin = toxin
        try:
            await asyncio.sleep(fault.duration_s)
        finally:
            at.world.proxy.toxin = CALM

    return inject


async def read_model(at: Field, fault: Planned) -> None:
    """Make the read model slow, failing one call in five, or unavailable."""
    file = at.world.read_model_file()
    file.write_text(fault.kind.removeprefix("read-model-"))
    try:
        await asyncio.sleep(fault.duration_s)
    finally:
        file.unlink(missing_ok=True)


async def slow_events(at: Field, fault: Planned) -> None:
    """Make events of a second worker take longer than its max.poll.interval."""
    second = at.world.start_second(
        fault.target, DARKROOM_WORKER__MAX_POLL_INTERVAL_S="2", DARKROOM_RESIZER__DEADLINE_S="12"
    )
    await at.world.until_members({fault.target: 2}, patience_s=60)
    at.world.proxy.toxin = Toxin(latency_s=3.0)
    try:
        await send_work(at, fault.target)
        await asyncio.sleep(fault.duration_s)
    finally:
        at.world.proxy.toxin = CALM
        await second.stop(20)


async def delete_races(at: Field, fault: Planned) -> None:
    """Delete images at different stages of their processing."""
    step = {"at once": 0.0, "quick": 0.15, "slow": 0.6}[fault.target]

    async def one(number: int) -> None:
        sent = await at.stream.upload(at.stream.some(number), "core")
        await asyncio.sleep(step * number)
        await at.stream.delete(sent)

    await asyncio.gather(*(one(number) for number in range(8)))


async def twins(at: Field, _fault: Planned) -> None:
    """Send the same bytes to both gateways concurrently; delete one image of every second pair at once."""
    for number in range(4):
        first, second = await at.stream.twins(at.stream.some(number))
        if number % 2:
            await at.stream.delete(first if number == 1 else second)


async def running(world: World, name: str) -> int:
    """Return the id of a process once it runs. Raises NotInjected."""
    if not await wait_until(lambda: world.pid(name) is not None, 60):
        raise NotInjected(f"{name} is not running")
    pid = world.pid(name)
    assert pid is not None
    return pid


async def wait_until(happened: Callable[[], bool], patience_s: float) -> bool:
    """Wait until a condition is true; return False on timeout."""
    deadline = time.monotonic() + patience_s
    while not happened():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True
