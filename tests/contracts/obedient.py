"""A stage that does what its events tell it, and a worker process of it on Kafka.

`context.act`: "raise" (a bug), "retry" (a dependency is away), "reject"; `context.sleep_s`: work that long.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from schemas.events.intake import ImageUploaded
from schemas.values import ErrorCode
from streams import topics
from streams.errors import Retryable
from streams.runtime.worker_process import run_stage
from streams.settings import Settings
from streams.stage import Emit, Outcome, Reject, Resources, Stage, StageSettings
from streams.telemetry.logs import configure_logs
from tests.support.stage_kit import emitted


@asynccontextmanager
async def _nothing(_settings: StageSettings, _resources: Resources) -> AsyncIterator[None]:
    yield None


async def obey(event: ImageUploaded, _tools: None) -> Outcome:
    """Do what the event says."""
    pause: Any = event.context.get("sleep_s", 0)
    await asyncio.sleep(float(pause))
    match event.context.get("act"):
        case "raise":
            raise ZeroDivisionError("as told")
        case "retry":
            raise Retryable("as told")
        case "reject":
            return Reject(ErrorCode.CORRUPT_IMAGE, "As told.")
    answer: Emit = emitted(event, note=str(event.context.get("note", "seen")))
    return answer


STAGE: Stage[Any, Any, Any] = Stage(
    name="sanitizer",
    version="1",
    consumes=(topics.UPLOADED, topics.FETCHED),
    emits=(topics.FACTS,),
    settings=StageSettings,
    open=_nothing,
    process=obey,
)
SETTINGS = StageSettings(concurrency=8, buffer=64, deadline_s=20)

if __name__ == "__main__":
    settings = Settings()
    configure_logs(settings.telemetry, process="obedient")
    sys.exit(asyncio.run(run_stage(STAGE, SETTINGS, settings)))
