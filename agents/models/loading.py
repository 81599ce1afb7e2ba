"""Loads a stage's model when the stage opens, not on import: warmed up and checked on a golden image, or unavailable.

It also opens the masters that the analysis stages read: the sanitizer re-encoded them, so Pillow may decode them in
this process.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog
from PIL import Image

from agents.models.weights import Unavailable
from schemas.values import ErrorCode
from streams.errors import NotReady
from streams.stage import Resources, Skip
from streams.telemetry import metrics
from streams.telemetry.health_board import Condition

M = TypeVar("M")
_open = Image.open  # on import ultralytics replaces Image.open by one with other errors
_MASTERS = ("PNG", "JPEG", "WEBP")  # the only decoders allowed


@dataclass(frozen=True, slots=True)
class Loaded(Generic[M]):
    """A model that passed its golden image, or None and the reason the stage skips."""

    model: M | None
    reason: str = ""

    def skips(self, count: int) -> Sequence[Skip]:
        """Return one Skip per event, with the reason."""
        return [Skip(ErrorCode.MODEL_UNAVAILABLE, self.reason, reported=True)] * count


async def load(
    stage: str,
    name: str,
    build: Callable[[], M],
    resources: Resources,
    *,
    required: bool,
    describe: Callable[[M], str] = lambda _: "",
) -> Loaded[M]:
    """Build a model in a thread (`build` loads, warms up and checks it); report the result in health, metric and log.

    Raises NotReady when the model is required and unavailable, when the settings do not fit it, or when it fails its
    golden image.
    """
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
        return Loaded(None, reason)
    except ValueError as error:  # WrongAnswer, Collapsed, or a setting that the model does not support
        gauge.set(0)
        resources.health.say(stage, Condition.UNREADY, str(error))
        raise NotReady(f"{stage}: {error}") from error
    gauge.set(1)
    resources.health.say(stage, Condition.OK, describe(model) or name)
    log.info("model ready", found=describe(model))
    return Loaded(model)


def open_master(data: bytes) -> Image.Image:
    """Return a master's pixels as RGB, transparency on white as viewers show it.

    Raises OSError for bytes that are not an image.
    """
    with _open(io.BytesIO(data), formats=_MASTERS) as image:
        if not image.has_transparency_data:
            return image.convert("RGB")
        shown = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
