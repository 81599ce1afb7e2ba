"""Loading of models: a failed load is repeated while the stage skips."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from agents.models import loading as module
from agents.models.loading import Loaded, loading, open_master
from agents.models.weights import Unavailable
from agents.stages import detector, embedder, ocr
from streams.settings import Settings
from streams.stage import Resources
from streams.telemetry.health_board import HealthBoard

STAGE = "embedder"


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)


def resources() -> Resources:
    """Return resources of which only the health board is used."""
    files: Any = None
    return Resources(Settings(), files, HealthBoard())


def failing(*errors: Exception) -> Callable[[], str]:
    """Return a builder that raises these errors, one per call, and then returns a model."""
    left = list(errors)

    def build() -> str:
        if left:
            raise left.pop(0)
        return "model"

    return build


async def until(loaded: Loaded[str], condition: Callable[[Loaded[str]], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition(loaded):
            await asyncio.sleep(0.001)


async def test_a_model_that_becomes_available_is_used_without_a_restart() -> None:
    """Meanwhile the stage skips with the reason and health is degraded; afterwards it is ok."""
    lent = resources()
    build = failing(Unavailable("no network"), Unavailable("still no network"))
    async with loading(STAGE, "clip", build, lent, required=False) as loaded:
        assert (loaded.model, loaded.reason) == (None, "clip is unavailable: no network")
        assert loaded.skips(1)[0].message == "clip is unavailable."
        assert lent.health.degraded() == loaded.reason
        await until(loaded, lambda one: one.model == "model")
        assert lent.health.degraded() is None


async def test_settings_places_and_urls_are_for_operators() -> None:
    """Health has the whole reason; the skip, which clients see, names at most the file it lacks."""
    lent = resources()
    why = "no ViT-B-32.pt in models.dir; download from https://weights.example.org failed (DARKROOM_MODELS__DOWNLOAD)"
    async with loading(STAGE, "clip", failing(Unavailable(why, file="ViT-B-32.pt")), lent, required=False) as loaded:
        assert why in (lent.health.degraded() or "")
        assert loaded.skips(1)[0].message == "clip is unavailable: no usable ViT-B-32.pt."


async def test_a_load_that_fails_in_another_way_is_repeated_too() -> None:
    """A damaged file and a wrong answer, which would end a starting process, keep a running stage skipping."""
    lent = resources()
    build = failing(Unavailable("no network"), OSError("damaged"), ValueError("wrong answer"))
    async with loading(STAGE, "clip", build, lent, required=False) as loaded:
        await until(loaded, lambda one: one.model == "model")
    assert lent.health.snapshot()[STAGE]["state"] == "ok"


async def test_what_a_model_works_without_is_reported() -> None:
    """A model without one of its engines is used, and health is degraded."""
    lent = resources()
    async with loading(STAGE, "ocr", failing(), lent, required=False, lacks=lambda _: "no easyocr") as loaded:
        assert loaded.model == "model"
        assert lent.health.degraded() == "no easyocr"


@pytest.mark.parametrize(
    ("agent", "builder", "tool"),
    [(detector, "_build", "detector"), (embedder, "_build", "encoder"), (ocr, "_build", "reading")],
    ids=["detector", "embedder", "ocr"],
)
async def test_a_stage_stops_skipping_once_its_model_is_loaded(
    agent: Any, builder: str, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open stage gets the model, and is no longer degraded."""
    build = failing(Unavailable("no network"))

    def model(*_: object) -> Any:
        build()
        return SimpleNamespace(missing=(), backend="torch", weights=SimpleNamespace(name="x", sha256="0" * 64))

    monkeypatch.setattr(agent, builder, model)
    lent = resources()
    async with agent.STAGE.open(agent.STAGE.settings(), lent) as tools:
        loaded = getattr(tools, tool)
        assert lent.health.degraded() == loaded.reason
        await until(loaded, lambda one: one.model is not None)
        assert lent.health.degraded() is None


def test_a_large_image_is_scaled_down_for_a_reader_of_smaller_images() -> None:
    """With a largest side, a larger image comes at that size and no smaller one changes; without, none does."""
    bodies = []
    for kind in ("JPEG", "PNG"):
        body = io.BytesIO()
        Image.new("RGB", (1000, 600), "white").save(body, kind)
        bodies.append(body.getvalue())
    jpeg, png = bodies
    for data in (jpeg, png):
        assert open_master(data, largest_side=400).size == (400, 240)
        assert open_master(data, largest_side=1000).size == (1000, 600)
        assert open_master(data).size == (1000, 600)
