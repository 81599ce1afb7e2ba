"""SIGKILL of the process that has the read model open, at random moments: what was acknowledged is there, once.

DARKROOM_KILLS=50 repeats each fault 50 times.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from qdrant_client import QdrantClient, models

from schemas.values import ImageState, new_image_id
from streams.read_model.protocol import ReadModel
from streams.read_model.records import DIMENSIONS, VECTOR
from tests.faults.read_model_checks import check_facts, opened, stale_images
from tests.faults.read_model_writer import ACKNOWLEDGED, READY, STEMMING, WANTED, acknowledged, facts_of, settings_of
from tests.support.deployment import until
from tests.support.forked_process import ForkedChild
from tests.support.read_models import stub, vector

pytestmark = pytest.mark.lengthy

KILLS = int(os.environ.get("DARKROOM_KILLS", "5"))
IMAGES_PER_KILL = 150  # more than a writer records before it is killed
OLD_IMAGES = 200
WRITTEN_MEANWHILE = 20  # images in each process that is killed while it changes the stemming
LANGUAGES = ("english", "")
CHANCE = random.Random(os.environ.get("DARKROOM_SEED", "7"))


def test_acknowledged_facts_survive_kills(tmp_path: Path) -> None:
    """After each kill the collection opens, and has every acknowledged fact once; unacknowledged ones can be redone."""
    images: list[str] = []
    log = tmp_path / ACKNOWLEDGED
    log.touch()
    for _ in range(KILLS):
        done = len(acknowledged(tmp_path))
        images += [new_image_id() for _ in range(IMAGES_PER_KILL - (len(images) - done // 5))]
        _want(tmp_path, images)
        size = log.stat().st_size
        with _writer(tmp_path) as writer:
            _soon(lambda: log.stat().st_size > size)  # noqa: B023
            time.sleep(CHANCE.uniform(0, 0.4))
            assert writer.exit_code is None, (tmp_path / "writer.log").read_text()[-2000:]
        asyncio.run(_check(tmp_path, [*images[-2 * IMAGES_PER_KILL :], *CHANCE.sample(images, IMAGES_PER_KILL // 3)]))
    wanted = {fact.id for image_id in images for fact in facts_of(image_id)}
    with _writer(tmp_path):
        until(lambda: acknowledged(tmp_path) >= wanted, "all facts", patience_s=120)
    asyncio.run(_check(tmp_path, images))


def test_another_stemming_survives_kills(tmp_path: Path) -> None:
    """Killed while images are given the stems of another language, and written: the next start completes it."""
    images = [new_image_id() for _ in range(OLD_IMAGES)]
    _want(tmp_path, images)
    with _writer(tmp_path):
        until(lambda: len(acknowledged(tmp_path)) == 5 * OLD_IMAGES, "the first images")
    for number in range(KILLS):
        images += [new_image_id() for _ in range(WRITTEN_MEANWHILE)]
        _want(tmp_path, images)
        with _writer(tmp_path, **{STEMMING: LANGUAGES[number % 2]}):
            _soon((tmp_path / READY).exists)
            time.sleep(CHANCE.uniform(0, 0.6))  # the kill comes at a random moment
    language = LANGUAGES[KILLS % 2]
    log, wanted = tmp_path / "writer.log", {fact.id for image_id in images for fact in facts_of(image_id)}
    size = log.stat().st_size
    with _writer(tmp_path, **{STEMMING: language}):
        until(lambda: acknowledged(tmp_path) >= wanted, "all facts")
        until(lambda: "the read model is up to date" in log.read_text()[size:], "all images brought up to date")
    assert stale_images(settings_of(tmp_path, language)) == {}
    asyncio.run(_check(tmp_path, images, language))


def test_a_collection_whose_creation_was_killed_is_created(tmp_path: Path) -> None:
    """Killed while the collection and its indexes are created, the next process creates what is missing."""
    unfinished = 0
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        (image_id,) = images = [new_image_id()]
        _want(folder, [])
        for _ in range(2):
            began = folder / "qdrant" / "edge"
            with _writer(folder):
                _soon(began.exists)
                time.sleep(CHANCE.uniform(0, 0.15))
            unfinished += not (folder / READY).exists()
        _want(folder, images)
        with _writer(folder):
            until(lambda: len(acknowledged(folder)) == 5, f"the facts of {image_id}", patience_s=60)  # noqa: B023
        asyncio.run(_check(folder, images))
    assert unfinished, "no process was killed before its collection was ready"


def test_data_of_local_mode_survives_kills_while_it_is_moved(tmp_path: Path) -> None:
    """Killed while it moves the images of an earlier version, the next has each of them once, with its vector."""
    images = _fill_local_mode(tmp_path / "qdrant")
    old_files = tmp_path / "qdrant" / "collection"
    _want(tmp_path, [])
    unfinished = 0
    for _ in range(KILLS):
        with _writer(tmp_path):
            _soon((tmp_path / "qdrant" / "edge").exists)
            time.sleep(CHANCE.uniform(0, 0.5))
        unfinished += not (tmp_path / READY).exists()

    async def check(model: ReadModel) -> None:
        assert await model.count() == {ImageState.PROCESSING: OLD_IMAGES}
        for seed, image_id in enumerate(images):
            known = await model.get(image_id)
            assert known is not None and known.text == f"old {seed}"
            assert await model.vector_of(image_id) == pytest.approx(vector(seed), abs=1e-6)

    asyncio.run(opened(settings_of(tmp_path), check))
    assert not list(old_files.iterdir()), "the old files are still there"
    assert unfinished, "no process was killed before the images were moved"


async def _check(folder: Path, images: Sequence[str], stemming: str = "") -> None:
    done = acknowledged(folder)
    await opened(settings_of(folder, stemming), lambda model: check_facts(model, images, done))


# The process that is killed


@contextmanager
def _writer(folder: Path, **environment: str) -> Iterator[ForkedChild]:
    """Run a writer; kill it at the end."""
    (folder / READY).unlink(missing_ok=True)
    writer = ForkedChild(
        ["tests.faults.read_model_writer", str(folder)],
        log_file=folder / "writer.log",
        env={**os.environ, **environment},
    )
    try:
        yield writer
    finally:
        writer.kill()


def _want(folder: Path, images: Sequence[str]) -> None:
    (folder / WANTED).write_text("\n".join(images))


def _soon(happened: Callable[[], bool]) -> None:
    """Wait for what the killed process does, more closely than `until`."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _fill_local_mode(folder: Path) -> list[str]:
    """Write images as earlier versions did in process; return their ids."""
    client = QdrantClient(path=str(folder))
    params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    client.create_collection("images", vectors_config={VECTOR: params})
    records = [stub(text=f"old {seed}") for seed in range(OLD_IMAGES)]
    client.upsert(
        "images",
        [
            models.PointStruct(
                id=record.image_id,
                vector={VECTOR: vector(seed)},
                payload=record.model_dump(mode="json", exclude_none=True),
            )
            for seed, record in enumerate(records)
        ],
    )
    client.close()
    return [record.image_id for record in records]
