"""One running system for all tests of the whole pipeline, and every test image sent through it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.client import Refused
from schemas.http.jobs import JobResult
from tests.e2e.whole import PATIENCE_S, MemoryWatch, Whole, started

GIVEN_UP_S = 3 * PATIENCE_S  # all images together, on a busy machine


@pytest.fixture(scope="package")
def whole(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, models_cache: Path) -> Iterator[Whole]:
    """Return a running system: real Kafka, real MinIO, every agent its own process."""
    allowed = {"DARKROOM_FETCHER__ALLOWED_NETWORKS": '["127.0.0.0/8"]'}
    with started(tmp_path_factory.mktemp("whole"), models_dir, models_cache, **allowed) as system:
        yield system


@dataclass(slots=True)
class Sent:
    """What became of every test image, by its path below the folder of images."""

    results: dict[str, JobResult] = field(default_factory=dict)
    at_the_door: dict[str, Refused] = field(default_factory=dict)
    as_events: dict[str, JobResult] = field(default_factory=dict)  # of those that must be refused
    memory: MemoryWatch | None = None

    def images(self, folder: str) -> dict[str, JobResult]:
        """Return the results of one folder."""
        return {name: result for name, result in self.results.items() if name.startswith(folder + "/")}


@pytest.fixture(scope="package")
def sent(whole: Whole, images_dir: Path) -> Sent:
    """Send every test image by HTTP, and those that must be refused as events of another service too."""
    paths = {str(path.relative_to(images_dir)): path for path in sorted(images_dir.rglob("*")) if path.is_file()}
    images = {name: path for name, path in paths.items() if path.suffix != ".txt"}
    assert len(images) >= 50, "the test data is not complete"
    sent = Sent()

    def send(name: str) -> None:
        try:
            job = whole.client.submit(images[name], metadata={"path": name})
        except Refused as refused:
            sent.at_the_door[name] = refused
        else:
            sent.results[name] = whole.client.wait(job.job_id, timeout_s=GIVEN_UP_S)

    def tell(name: str) -> None:
        sent.as_events[name] = whole.ended(whole.tell(images[name].read_bytes()))

    with MemoryWatch(lambda: whole.agent("sanitizer")) as sent.memory, ThreadPoolExecutor(16) as threads:
        list(threads.map(send, images))
        list(threads.map(tell, [name for name in images if refused_by_policy(name)]))
    return sent


def refused_by_policy(name: str) -> bool:
    """Say whether an image must be refused: by its folder, or by its format."""
    return name.startswith("hostile/") or name.endswith((".svg", ".jp2"))
