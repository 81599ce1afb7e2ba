"""CLIP in the query process: a failed load is repeated, after a pause."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agents.models.weights import Unavailable
from darkroom.processes import clip
from darkroom.processes.clip import ImageTower, QueryEncoder, open_encoder, open_tower
from gateway.protocols import ModelUnavailable
from streams.concurrency.backoff import Backoff
from streams.settings import ModelsSettings


class Loads:
    """A loader that fails a number of times; counts its calls."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise Unavailable(f"no weights ({self.calls})")
        return object()


async def test_search_by_meaning_begins_once_the_model_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then health has the reason of the last failure."""
    loads = Loads(3)
    monkeypatch.setattr(clip, "RETRY_S", 0.0)
    monkeypatch.setattr(QueryEncoder, "_load_text", loads)
    async with open_tower(ModelsSettings()) as tower, open_encoder(ModelsSettings(), tower) as encoder:
        reasons = {encoder.available()[1]}
        async with asyncio.timeout(60):
            while not encoder.available()[0]:
                reasons.add(encoder.available()[1])
                await asyncio.sleep(0)
    assert "no weights (1)" in reasons
    assert loads.calls == 4


async def test_the_image_tower_is_loaded_again_after_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the pause a use fails at once, with the reason; concurrent uses share one load."""
    loads, now = Loads(1), 0.0
    monkeypatch.setattr(ImageTower, "_load", loads)
    async with open_tower(ModelsSettings()) as tower:
        tower._backoff = Backoff(5.0, 300.0, clock=lambda: now)
        failed = await asyncio.gather(tower.encoder(), tower.encoder(), return_exceptions=True)
        assert [str(error) for error in failed] == ["no weights (1)"] * 2
        with pytest.raises(ModelUnavailable, match=r"no weights \(1\)"):
            await tower.encoder()
        assert loads.calls == 1
        now = 5.0
        assert await tower.encoder() is await tower.encoder()
    assert loads.calls == 2
