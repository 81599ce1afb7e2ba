"""Resident memory of every process of the embedded system while it processes 12-megapixel images."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import psutil

from bench.pipeline import models_of, send
from bench.uploads import twelve_megapixels
from darkroom.local.system import RunningSystem, SystemPlan, running_system
from gateway.client import AsyncDarkroom

LARGE = 12
WITH_MODELS = ("ocr", "detector", "embedder")
SLIM_MB, MODELS_MB = 250, 1500


async def _sampled(system: RunningSystem, peaks: dict[str, float]) -> None:
    while True:
        for name, state in system.supervisor.states().items():
            if state.pid is None:
                continue
            try:
                resident = psutil.Process(state.pid).memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
            peaks[name] = max(peaks.get(name, 0.0), resident)
        await asyncio.sleep(0.1)


async def _measure(data_dir: Path) -> dict[str, float]:
    """Return each process's peak resident MB, startup included, without its sandbox children."""
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        plan = SystemPlan(scratch / "system", port=0, environment=models_of(scratch, data_dir))
        async with running_system(plan, lambda _line: None) as system:
            await system.until_ready(lambda _line: None)
            sampling = asyncio.create_task(_sampled(system, peaks))
            async with AsyncDarkroom(system.url, timeout_s=120) as client:
                await send(client, twelve_megapixels(data_dir, LARGE))
            sampling.cancel()
    return peaks


def run(data_dir: Path) -> list[dict[str, object]]:
    """Return one row per process."""
    rows: list[dict[str, object]] = []
    for name, megabytes in sorted(asyncio.run(_measure(data_dir)).items()):
        limit = MODELS_MB if name in WITH_MODELS else SLIM_MB
        rows.append(
            {
                "work": f"resident memory of {name}, {LARGE} images of 12 MP",
                "baseline_s": None,
                "ours_s": None,
                "ratio": megabytes,
                "target": limit,
                "notes": "gateway, query and indexer in one process" if name == "core" else "",
            }
        )
    return rows
