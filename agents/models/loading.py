"""Loads a stage's model when the stage opens, not on import: warmed up and checked on a golden image, or unavailable.

While a model is unavailable its stage skips, and loading is tried again in the background.

It also opens the masters that the analysis stages read: the sanitizer re-encoded them, so Pillow may decode them in
this process.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from PIL import Image

from agents.models.weights import Unavailable
from schemas.values import ErrorCode
from streams.concurrency.backoff import Backoff
from streams.errors import NotReady, ObjectGone
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.stage import Resources, Skip
from streams.telemetry import metrics
from streams.telemetry.health_board import Condition

M = TypeVar("M")
_open = Image.open  # on import ultralytics replaces Image.open by one with other errors
RETRY_S, MAX_RETRY_S = 10.0, 600.0  # after a failed load: the first pause, doubled up to the second
_MASTERS = ("PNG", "JPEG", "WEBP")  # the only decoders allowed


@dataclass(slots=True)
class Loaded(Generic[M]):
    """A model that passed its golden image, or None and the reason the stage skips until a later load succeeds."""

    model: M | None
    reason: str = ""  # for operators: health and log
    public: str = ""  # for clients: without settings, places and URLs

    def skips(self, count: int) -> Sequence[Skip]:
        """Return one Skip per event, with the public reason."""
        return [Skip(ErrorCode.MODEL_UNAVAILABLE, self.public, reported=True)] * count


@asynccontextmanager
async def loading(
    stage: str,
    name: str,
    build: Callable[[], M],
    resources: Resources,
    *,
    required: bool,
    describe: Callable[[M], str] = lambda _: "",
    lacks: Callable[[M], str] = lambda _: "",
) -> AsyncIterator[Loaded[M]]:
    """Build a model in a thread (`build` loads, warms up and checks it); while it is unavailable, build it again.

    Each result goes to health, metric and log; `lacks` returns what a model works without, if anything. Raises
    NotReady when the model is required and unavailable, when the settings do not fit it, or when it fails its golden
    image.
    """

    async def attempt() -> Loaded[M]:
        return await load(stage, name, build, resources, required=required, describe=describe, lacks=lacks)

    loaded = await attempt()
    retrying = asyncio.create_task(_retry(loaded, stage, attempt, resources), name=f"{stage}-model")
    try:
        yield loaded
    finally:
        retrying.cancel()
        await asyncio.gather(retrying, return_exceptions=True)


async def load(
    stage: str,
    name: str,
    build: Callable[[], M],
    resources: Resources,
    *,
    required: bool,
    describe: Callable[[M], str] = lambda _: "",
    lacks: Callable[[M], str] = lambda _: "",
) -> Loaded[M]:
    """Build a model once; see `loading`."""
    gauge = metrics.MODEL_AVAILABLE.labels(stage, name)
    log = structlog.get_logger().bind(stage=stage, model=name)
    try:
        model = await asyncio.to_thread(build)
    except (Unavailable, ModuleNotFoundError) as error:  # the weights, or the library that runs them, are missing
        gauge.set(0)
        reason = f"{name} is unavailable: {error}"
        if required:
            resources.health.say(stage, Condition.UNREADY, reason)
            raise NotReady(f"{stage} requires its model. {reason}") from error
        resources.health.say(stage, Condition.DEGRADED, reason)
        log.warning("model unavailable; stage skips", reason=str(error))
        file = error.file if isinstance(error, Unavailable) else ""
        return Loaded(None, reason, f"{name} is unavailable{f': no usable {file}' if file else ''}.")
    except ValueError as error:  # WrongAnswer, Collapsed, or a setting that the model does not support
        gauge.set(0)
        resources.health.say(stage, Condition.UNREADY, str(error))
        raise NotReady(f"{stage}: {error}") from error
    gauge.set(1)
    missing = lacks(model)
    resources.health.say(stage, Condition.DEGRADED if missing else Condition.OK, missing or describe(model) or name)
    log.info("model ready", found=describe(model))
    return Loaded(model)


async def _retry(
    loaded: Loaded[M], stage: str, attempt: Callable[[], Awaitable[Loaded[M]]], resources: Resources
) -> None:
    """Repeat a failed load with growing pauses until it succeeds; the stage then stops skipping."""
    backoff = Backoff(RETRY_S, MAX_RETRY_S)
    while loaded.model is None:
        await asyncio.sleep(backoff.failed())
        try:
            again = await attempt()
        except Exception as error:  # at the start this ends the process; now the stage keeps skipping
            loaded.reason = str(error) if isinstance(error, NotReady) else f"{stage}: the model cannot be loaded"
            resources.health.say(stage, Condition.DEGRADED, loaded.reason)
            structlog.get_logger().warning("model load failed again", stage=stage, error=repr(error))
        else:
            loaded.model, loaded.reason, loaded.public = again.model, again.reason, again.public


async def read_master(files: FileStore, key: str) -> bytes:
    """Return the bytes of a master or another page. Raises ObjectGone."""
    try:
        return await files.get(key)
    except ObjectMissing as error:
        raise ObjectGone(key) from error


def open_master(data: bytes, *, largest_side: int | None = None) -> Image.Image:
    """Return a master's pixels as RGB, transparency on white as viewers show it.

    With `largest_side`, a larger image comes scaled down to it; a JPEG is decoded smaller first, which takes a fraction
    of the memory. Raises OSError for bytes that are not an image.
    """
    image = _opaque(data, largest_side)
    if largest_side is not None:
        image.thumbnail((largest_side, largest_side))  # in place: the large one is freed before it is read
    return image


def _opaque(data: bytes, largest_side: int | None) -> Image.Image:
    with _open(io.BytesIO(data), formats=_MASTERS) as image:
        if largest_side is not None and max(image.size) > largest_side:
            scale = largest_side / max(image.size)  # Pillow decodes to no less than either of the sides it is given
            image.draft("RGB", (max(int(image.width * scale), 1), max(int(image.height * scale), 1)))
        if not image.has_transparency_data:
            image.load()  # `convert` copies the pixels, 150 MB of the largest master, also where nothing changes
            return image if image.mode == "RGB" else image.convert("RGB")
        shown = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
