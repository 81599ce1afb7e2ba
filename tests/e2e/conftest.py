"""One running system for the end-to-end tests, and the results of every test image."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.client import Refused
from schemas.http.jobs import JobResult
from tests.e2e.system import PATIENCE_S, MemoryWatch, RunningSystem, started

ALL_IMAGES_S = 3 * PATIENCE_S  # all images together, on a slow machine


@pytest.fixture(scope="package")
def system(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, models_cache: Path) -> Iterator[RunningSystem]:
    """Return a running system: Kafka, MinIO, and each agent as a process."""
    allowed = {"DARKROOM_FETCHER__ALLOWED_NETWORKS": '["127.0.0.0/8"]', "DARKROOM_FETCHER__REQUESTS": "1000"}
    with started(tmp_path_factory.mktemp("system"), models_dir, models_cache, **allowed) as system:
        yield system


@dataclass(slots=True)
class Sent:
    """The results of all test images, by path relative to the image folder."""

    results: dict[str, JobResult] = field(default_factory=dict)
    rejected_on_upload: dict[str, Refused] = field(default_factory=dict)
    as_events: dict[str, JobResult] = field(default_factory=dict)  # of the images that must be rejected
    memory: MemoryWatch | None = None

    def images(self, folder: str) -> dict[str, JobResult]:
        """Return the results of one folder."""
        return {name: result for name, result in self.results.items() if name.startswith(folder + "/")}


@pytest.fixture(scope="package")
def sent(system: RunningSystem, images_dir: Path) -> Sent:
    """Upload every test image over HTTP, and send those that must be rejected as another service's events too."""
    # images/kinds is labelled file by file, in expected.json, not by its folder.
    files = (path for path in sorted(images_dir.rglob("*")) if path.is_file() and "kinds" not in path.parts)
    paths = {str(path.relative_to(images_dir)): path for path in files}
    images = {name: path for name, path in paths.items() if path.suffix != ".txt"}
    assert len(images) >= 50, "the test data is not complete"
    sent = Sent()

    def send(name: str) -> None:
        try:
            job = system.client.submit(images[name], metadata={"path": name})
        except Refused as refused:
            sent.rejected_on_upload[name] = refused
        else:
            sent.results[name] = system.client.wait(job.job_id, timeout_s=ALL_IMAGES_S)

    def publish(name: str) -> None:
        sent.as_events[name] = system.ended(system.publish(images[name].read_bytes()))

    with MemoryWatch(lambda: system.agent("sanitizer")) as sent.memory, ThreadPoolExecutor(16) as threads:
        list(threads.map(send, images))
        list(threads.map(publish, [name for name in images if must_be_rejected(name)]))
    return sent


def must_be_rejected(name: str) -> bool:
    """Return whether an image must be rejected, by its folder or format."""
    return name.startswith("hostile/") or name.endswith((".svg", ".jp2"))
