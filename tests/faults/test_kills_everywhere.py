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
from tests.support.deployment import Deployment, deployed, until

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
def deployment(
    kafka: LocalKafka, models_dir: Path, models_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Return all seven agents at work, those to be killed each with its point in a file."""
    settings = {
        "DARKROOM_MODELS__DIR": str(models_dir),
        "DARKROOM_MODELS__CACHE": str(models_cache),
        "DARKROOM_FETCHER__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    }
    with deployed(kafka.bootstrap, tmp_path_factory.mktemp("everywhere"), settings=settings) as deployment:
        deployment.start("core", "sanitizer", "resizer")
        for agent in AGENTS:
            _start(deployment, agent)
        deployment.until_ready(*topics.AGENTS)
        yield deployment


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
    point: str, name: str, deployment: Deployment, web: str
) -> None:
    """All four are killed on one image, at the same point, and started again: one outcome, results as without."""
    calm, image = new_image_id(), new_image_id()
    deployment.publish(topics.FETCH_REQUESTED, FetchRequested(image_id=calm, owner=CALM, url=f"{web}/{name}"))
    until(lambda: calm in deployment.outcomes(), "the calm run's end")
    deployment.until_idle(*topics.AGENTS)
    struck = STORING if point == "after-object" else AGENTS
    for agent in struck:
        _strike_file(deployment, agent).write_text(point)
    deployment.publish(topics.FETCH_REQUESTED, FetchRequested(image_id=image, url=f"{web}/{name}"))
    for agent in struck:
        deployment.until_killed(agent)
        _start(deployment, agent)
    deployment.until_ended([image])
    deployment.until_idle(*topics.AGENTS)
    outcomes = deployment.outcomes()
    assert [kind for _, kind in outcomes[image]] == [kind for _, kind in outcomes[calm]] == [ImageCompleted.type]
    assert deployment.objects(image) == deployment.objects(calm)
    assert _results(deployment, "default") == _results(deployment, CALM) != {}
    assert not [letter for agent in topics.AGENTS for letter in deployment.records(topics.dead_topic(agent))]


def _strike_file(deployment: Deployment, agent: str) -> Path:
    return deployment.folder / f"strike-{agent}"


def _start(deployment: Deployment, agent: str) -> None:
    deployment.start(agent, strike=f"@{_strike_file(deployment, agent)}")


def _results(deployment: Deployment, owner: str) -> dict[str, str]:
    """Return what was read and seen in all images of an owner, by input, stage and parameters."""
    return {
        key.removeprefix(f"results/{owner}/"): json.dumps(json.loads(deployment.read(key))["result"], sort_keys=True)
        for key in deployment.keys(f"results/{owner}/")
        if any(f"/{stage}/" in key for stage in STORING)
    }
