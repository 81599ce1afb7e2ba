"""Fetcher, OCR, detector and embedder killed with -9 at each point of their work: the same image comes of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from schemas.events.intake import FetchRequested
from schemas.events.outcomes import ImageCompleted
from schemas.values import new_image_id
from streams import topics
from tests.support.plant import Plant, planted, until

pytestmark = pytest.mark.timeout(600)  # the first test waits for the models

AGENTS = ("fetcher", "ocr", "detector", "embedder")
STORING = ("ocr", "detector")  # the fetcher has no result to find again; without weights the embedder has none
CALM = "calm"  # the owner of the same images in a run without kills: results are never shared between owners


@pytest.fixture(scope="module")
def web(images_dir: Path) -> Iterator[str]:
    """Return the address of the test images."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(images_dir))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def plant(
    kafka: LocalKafka, models_dir: Path, models_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plant]:
    """Return all seven agents at work, those to be killed each with its point in a file."""
    settings = {
        "DARKROOM_MODELS__DIR": str(models_dir),
        "DARKROOM_MODELS__CACHE": str(models_cache),
        "DARKROOM_FETCHER__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    }
    with planted(kafka.bootstrap, tmp_path_factory.mktemp("everywhere"), settings=settings) as plant:
        plant.start("core", "sanitizer", "resizer")
        for agent in AGENTS:
            _start(plant, agent)
        plant.until_ready(*topics.AGENTS)
        yield plant


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ("before-work", "clip_golden/123_456.jpg"),
        ("after-object", "formats/cat.jpg"),
        ("after-produce", "formats/5_webp_a.webp"),
        ("before-commit", "formats/basn3p08.png"),
    ],
)
def test_an_agent_killed_with_its_model_loses_and_doubles_nothing(
    point: str, name: str, plant: Plant, web: str
) -> None:
    """All four are killed on one image, at the same point, and started again: one outcome, results as without."""
    calm, image = new_image_id(), new_image_id()
    plant.say(topics.FETCH_REQUESTED, FetchRequested(image_id=calm, owner=CALM, url=f"{web}/{name}"))
    until(lambda: calm in plant.outcomes(), "the calm run's end")
    plant.until_idle(*topics.AGENTS)
    struck = STORING if point == "after-object" else AGENTS
    for agent in struck:
        _strike_file(plant, agent).write_text(point)
    plant.say(topics.FETCH_REQUESTED, FetchRequested(image_id=image, url=f"{web}/{name}"))
    for agent in struck:
        plant.until_killed(agent)
        _start(plant, agent)
    plant.until_ended([image])
    plant.until_idle(*topics.AGENTS)
    outcomes = plant.outcomes()
    assert [kind for _, kind in outcomes[image]] == [kind for _, kind in outcomes[calm]] == [ImageCompleted.type]
    assert plant.objects(image) == plant.objects(calm)
    assert _results(plant, "default") == _results(plant, CALM) != {}
    assert not [letter for agent in topics.AGENTS for letter in plant.records(topics.dead_topic(agent))]


def _strike_file(plant: Plant, agent: str) -> Path:
    return plant.folder / f"strike-{agent}"


def _start(plant: Plant, agent: str) -> None:
    plant.start(agent, strike=f"@{_strike_file(plant, agent)}")


def _results(plant: Plant, owner: str) -> dict[str, str]:
    """Return what was read and seen in all images of an owner, by input, stage and parameters."""
    return {
        key.removeprefix(f"results/{owner}/"): json.dumps(json.loads(plant.read(key))["result"], sort_keys=True)
        for key in plant.keys(f"results/{owner}/")
        if any(f"/{stage}/" in key for stage in STORING)
    }
