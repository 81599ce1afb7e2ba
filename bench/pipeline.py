"""Images per second from upload to completed, all agents, against the same stages called sequentially, and one script.

The first baseline opens the stages in one process, with all cores, and runs sanitize, resize, read, detect and embed
for each photo. The second is `baselines.obvious_script`: Pillow, EasyOCR, YOLO and open_clip called in a loop. The
pipeline is the embedded system: Kafka, gateway, and each agent as a process. CLIP has seeded random weights
in all. Models are loaded and warm in all before the measurement.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from agents import pipeline
from bench.uploads import random_clip, varied
from darkroom.local.system import SystemPlan, running_system
from gateway.client import AsyncDarkroom
from schemas.events.facts import ImageSanitized
from schemas.events.intake import ImageUploaded
from schemas.values import ImageState, StageReport, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import original_key
from streams.settings import FilesSettings, Settings, TelemetrySettings
from streams.stage import Resources
from streams.telemetry.health_board import HealthBoard
from streams.telemetry.logs import configure_logs

PHOTOS = 100
PHOTOS_OF_SCRIPT = 30
AT_ONCE = 8
ANALYSES = ("resizer", "ocr", "detector", "embedder")


def models_of(scratch: Path, data_dir: Path) -> dict[str, str]:
    """Return settings with all models available (the test detector, CLIP with random weights) and no upload limit."""
    models = scratch / "models"
    models.mkdir()
    for weights in (data_dir / "models").glob("*yolo*.pt"):
        (models / weights.name).symlink_to(weights)
    return {
        "DARKROOM_MODELS__DIR": str(models),
        "DARKROOM_MODELS__CLIP_WEIGHTS": random_clip(models).name,
        "DARKROOM_TELEMETRY__LOG_LEVEL": "WARNING",
        "DARKROOM_LIMITS__UPLOADS": "none",
    }


async def run_sequentially(data_dir: Path, folder: Path) -> float:
    """Return the seconds of the script for all photos."""
    settings = Settings()
    configure_logs(settings.telemetry, process="bench")
    report = StageReport(stage="sanitizer", version="1", attempts=1, duration_ms=0)
    async with AsyncExitStack() as stack:
        files = await stack.enter_async_context(open_files(FilesSettings(directory=folder)))
        resources = Resources(settings=settings, files=files, health=HealthBoard())
        opened: dict[str, tuple[Any, Any]] = {}
        for name in ("sanitizer", *ANALYSES):
            stage = pipeline.stage(name)
            tools = await stack.enter_async_context(stage.open(pipeline.settings_of(stage), resources))
            opened[name] = (stage, tools)

        async def call(name: str, event: Any) -> Any:
            stage, tools = opened[name]
            if stage.process_batch is not None:
                return (await stage.process_batch([event], tools))[0]
            return await stage.process(event, tools)

        photos = varied(data_dir, PHOTOS)
        began = time.perf_counter()
        for photo in photos:
            digest = hashlib.sha256(photo).hexdigest()
            ref = await files.put(original_key("default", digest), photo, content_type="image/jpeg", sha256=digest)
            event = ImageUploaded(image_id=new_image_id(), original=ref)
            master = await call("sanitizer", event)
            safe = ImageSanitized(image_id=event.image_id, original=ref, image=master, report=report)
            for name in ANALYSES:
                answer = await call(name, safe)
                if isinstance(answer, Exception):
                    raise answer
        return time.perf_counter() - began


async def send(client: AsyncDarkroom, photos: list[bytes]) -> None:
    """Upload all photos and wait until each completes."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, photo: bytes) -> str:
        async with gate:
            return (await client.submit(photo, filename=f"{number}.jpg")).job_id

    open_jobs = set(await asyncio.gather(*(one(number, photo) for number, photo in enumerate(photos))))
    while open_jobs:
        for job in list(open_jobs):
            status = await client.status(job)
            if status.status is ImageState.PROCESSING:
                break  # jobs end mostly in order, so the later ones are still open
            if status.status is not ImageState.COMPLETED:
                raise RuntimeError(f"{job} ended {status.status}")
            open_jobs.discard(job)
        await asyncio.sleep(0.1)


async def _run_pipeline(data_dir: Path, scratch: Path, environment: Mapping[str, str]) -> float:
    """Return the seconds of the pipeline for all photos."""
    plan = SystemPlan(scratch / "system", port=0, environment=environment)
    async with running_system(plan, lambda _line: None) as system:
        await system.until_ready(lambda _line: None)
        async with AsyncDarkroom(system.url, timeout_s=120) as client:
            await send(client, varied(data_dir, PHOTOS + 3)[-3:])
            photos = varied(data_dir, PHOTOS)
            began = time.perf_counter()
            await send(client, photos)
            return time.perf_counter() - began


async def _seconds_of(module: str, *arguments: object, environment: Mapping[str, str]) -> float:
    """Return the number that a module prints last."""
    script = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *map(str, arguments),
        env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await script.communicate()
    return float(output.split()[-1])


async def _measure(data_dir: Path) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        environment = models_of(scratch, data_dir)
        stages = await _seconds_of("bench.pipeline", data_dir, scratch / "objects", environment=environment)
        script = await _seconds_of(
            "bench.baselines.obvious_script", data_dir, scratch / "plain", PHOTOS_OF_SCRIPT,
            environment=environment,
        )  # fmt: skip
        return stages, script * PHOTOS / PHOTOS_OF_SCRIPT, await _run_pipeline(data_dir, scratch, environment)


def run(data_dir: Path) -> list[dict[str, object]]:
    """Return a row for each baseline."""
    stages, script, ours = asyncio.run(_measure(data_dir))
    return [
        {
            "work": f"{PHOTOS} photos, upload to completed, all agents, against {name}",
            "baseline_s": plain,
            "ours_s": ours,
            "ratio": plain / ours,
            "target": target,
            "notes": f"baseline {PHOTOS / plain:.2f} images/s, pipeline {PHOTOS / ours:.2f} images/s",
        }
        for name, plain, target in (("our own stages in a row", stages, 0.85), ("the obvious script", script, 1.0))
    ]


if __name__ == "__main__":
    configure_logs(TelemetrySettings(log_level="WARNING"), process="bench")
    print(asyncio.run(run_sequentially(Path(sys.argv[1]), Path(sys.argv[2]))))
