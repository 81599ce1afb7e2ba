from __future__ import annotations

from typing import Any

import pytest

from darkroom.processes import clip
from darkroom.processes.clip import ClipFeatures, Decoder, ImageTower, QueryEncoder
from streams.errors import DependencyUnavailable, NotReady
from streams.sandbox.pool import Sandbox
from streams.settings import ModelsSettings

WITHOUT_LANDLOCK = "tests.unit.streams.sandbox.lacking:without_landlock"


@pytest.fixture
def _lacking_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start children as on a system without Landlock."""

    def lacking(_: str, **options: Any) -> Sandbox:
        return Sandbox(WITHOUT_LANDLOCK, **options)

    monkeypatch.setattr(clip, "Sandbox", lacking)


@pytest.mark.usefixtures("_lacking_landlock")
async def test_a_query_process_does_not_start_without_a_required_confinement() -> None:
    """With DARKROOM_SANDBOX__REQUIRE the process exits at its start, instead of failing the first search by image."""
    encoder = QueryEncoder(ModelsSettings(), ImageTower(ModelsSettings()), require_sandbox=True)
    with pytest.raises(NotReady, match=r"Landlock .*DARKROOM_SANDBOX__REQUIRE=false"):
        await encoder.start_decoder()
    encoder.close()


@pytest.mark.usefixtures("_lacking_landlock")
async def test_no_image_is_decoded_without_a_required_confinement() -> None:
    """Children that start on first use decode nothing where a required part is missing."""
    features = ClipFeatures(ImageTower(ModelsSettings()), decoders=1, max_bytes=1000, require_sandbox=True)
    with pytest.raises(DependencyUnavailable, match="Landlock"):
        await features.prepare(b"an image")
    features.close()


@pytest.mark.usefixtures("_lacking_landlock")
async def test_a_missing_part_is_accepted_by_default() -> None:
    """Without the setting the children work as far as the system confines them."""
    decoder = Decoder(workers=1, max_bytes=1000)
    await decoder.start()
    decoder.close()
