"""The images of the fault tests, and their files after a run without faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from streams.topics import UPLOADED
from tests.support.deployment import deployed

# Small, one per format: JPEG, progressive JPEG, palette PNG, alpha WebP, AVIF.
NAMES = (
    "clip_golden/123_456.jpg",
    "formats/cat.jpg",
    "formats/basn3p08.png",
    "formats/5_webp_a.webp",
    "formats/hopper.avif",
)


@pytest.fixture(scope="session")
def images(images_dir: Path) -> dict[str, bytes]:
    """Return the images that the fault tests send, by name."""
    return {name: (images_dir / name).read_bytes() for name in NAMES}


@pytest.fixture(scope="package")
def calm(
    kafka: LocalKafka, images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """Return the sha256 of every stored file of every image after a run without faults."""
    with deployed(
        kafka.bootstrap, tmp_path_factory.mktemp("calm"), agents=("sanitizer", "resizer", "indexer")
    ) as deployment:
        deployment.start("sanitizer", "resizer", "core")
        events = {name: deployment.uploaded(data) for name, data in images.items()}
        deployment.publish(UPLOADED, *events.values())
        deployment.until_ended([event.image_id for event in events.values()])
        found = {name: deployment.objects(event.image_id) for name, event in events.items()}
    assert all(len(files) == 5 for files in found.values()), "a master and four renditions"
    return found
