"""200 connections with unknown API keys for 30 seconds, while an owner polls.

A gateway with its Kafka, and no agents. The owner polls in a closed loop, 20 times a second at most, first alone and
then during the flood; each connection of the flood sends the next key that does not exist as soon as the last one is
refused. The flood runs in a process of its own, so that it does not delay the owner's clock; it shares the machine's
cores with the gateway. DARKROOM_BENCH_SECONDS changes the duration.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from darkroom.local.system import SystemPlan, running_system
from gateway.access.api_keys import ApiKeys
from schemas.http.keys import NewKey
from streams.object_store.factory import open_files
from streams.settings import FilesSettings

SECONDS = float(os.environ.get("DARKROOM_BENCH_SECONDS", "30"))
IDLE_S = 10.0
CONNECTIONS = 200
POLL_EVERY_S = 0.05
USAGE = "/api/v1/usage"
START_PATIENCE_S = 120.0


@dataclass(slots=True)
class Polls:
    """Statuses and response times of the owner's polls."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @property
    def succeeded(self) -> float:
        """The share of polls that were answered with 200."""
        return self.statuses["200"] / max(1, self.statuses.total())

    def percentile_ms(self, mark: int) -> float:
        """Return a percentile of the response times, in ms."""
        return 1000 * statistics.quantiles(self.seconds, n=100)[mark - 1] if len(self.seconds) > 1 else 0.0


async def _poll(url: str, key: str, seconds: float) -> Polls:
    polls = Polls()
    until = time.monotonic() + seconds
    async with aiohttp.ClientSession(headers={"X-API-Key": key}, timeout=aiohttp.ClientTimeout(total=60)) as session:
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                async with session.get(url + USAGE) as answer:
                    await answer.read()
                    polls.statuses[str(answer.status)] += 1
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                polls.statuses[type(error).__name__] += 1
            polls.seconds.append(time.monotonic() - began)
            await asyncio.sleep(max(0.0, POLL_EVERY_S - polls.seconds[-1]))
    return polls


async def _attack(url: str, seconds: float) -> Counter[str]:
    statuses: Counter[str] = Counter()
    until = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as session:

        async def connection() -> None:
            while time.monotonic() < until:
                key = f"dk_{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"
                try:
                    async with session.get(url + USAGE, headers={"X-API-Key": key}) as answer:
                        await answer.read()
                        statuses[str(answer.status)] += 1
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    statuses[type(error).__name__] += 1

        await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return statuses


def _flood(url: str, seconds: float) -> Counter[str]:
    return asyncio.run(_attack(url, seconds))


async def _until_live(url: str) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(START_PATIENCE_S):
        while True:
            try:
                async with session.get(f"{url}/health/live") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


async def _measure() -> tuple[Polls, Polls, Counter[str]]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "system"
        async with open_files(FilesSettings(directory=folder / "objects")) as files:
            _, key = await ApiKeys(files).create(NewKey(owner="shop"))
        plan = SystemPlan(folder, port=0, agents=())
        async with running_system(plan, lambda _line: None) as system:
            await _until_live(system.url)
            await _poll(system.url, key, 2.0)
            idle = await _poll(system.url, key, IDLE_S)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
                flood = asyncio.get_running_loop().run_in_executor(processes, _flood, system.url, SECONDS)
                flooded = await _poll(system.url, key, SECONDS)
                return idle, flooded, await flood


def run(_data_dir: Path) -> list[dict[str, Any]]:
    """Return the share of the owner's polls that succeed, and their p95 against that of an idle gateway."""
    idle, flooded, others = asyncio.run(_measure())
    times = " and ".join(
        "/".join(f"{polls.percentile_ms(mark):.1f}" for mark in (50, 95, 99)) for polls in (idle, flooded)
    )
    share = {
        "work": f"an owner's polls among {CONNECTIONS} connections with unknown keys: share that succeeds",
        "baseline_s": 1.0,
        "ours_s": 1 / max(flooded.succeeded, 1e-9),
        "ratio": flooded.succeeded,
        "target": 0.99,
        "notes": f"{dict(flooded.statuses)}; unknown keys: {dict(others)} in {SECONDS:g} s",
    }
    p95 = {
        "work": "their p95, against an idle gateway's",
        "baseline_s": idle.percentile_ms(95) / 1000,
        "ours_s": flooded.percentile_ms(95) / 1000,
        "ratio": idle.percentile_ms(95) / max(flooded.percentile_ms(95), 1e-9),
        "target": 0.5,
        "notes": f"idle and flooded p50/95/99: {times} ms",
    }
    return [share, p95]


if __name__ == "__main__":
    sys.exit("run it as `python -m bench unknown_keys`")
