"""A stage scripted by its events, and its worker process on Kafka.

`context.act`: "raise" (a bug), "retry" (an unavailable dependency), "reject"; `context.sleep_s`: seconds of work.
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


async def perform(event: ImageUploaded, _tools: None) -> Outcome:
    """Perform the event's `context`."""
    pause: Any = event.context.get("sleep_s", 0)
    await asyncio.sleep(float(pause))
    match event.context.get("act"):
        case "raise":
            raise ZeroDivisionError("scripted")
        case "retry":
            raise Retryable("scripted")
        case "reject":
            return Reject(ErrorCode.CORRUPT_IMAGE, "Scripted.")
    answer: Emit = emitted(event, note=str(event.context.get("note", "seen")))
    return answer


STAGE: Stage[Any, Any, Any] = Stage(
    name="sanitizer",
    version="1",
    consumes=(topics.UPLOADED, topics.FETCHED),
    emits=(topics.FACTS,),
    settings=StageSettings,
    open=_nothing,
    process=perform,
)
SETTINGS = StageSettings(concurrency=8, buffer=64, deadline_s=20)

if __name__ == "__main__":
    settings = Settings()
    configure_logs(settings.telemetry, process="scripted")
    sys.exit(asyncio.run(run_stage(STAGE, SETTINGS, settings)))
