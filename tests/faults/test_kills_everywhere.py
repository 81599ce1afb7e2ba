"""Fetcher and the analysis agents killed with SIGKILL at each point of their work: the results do not change."""

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
from schemas.values import ANALYSIS_STAGES, Profile, new_image_id
from streams import topics
from tests.support.deployment import Deployment, deployed, until

pytestmark = [pytest.mark.lengthy, pytest.mark.timeout(600)]  # the first test waits for the models

AGENTS = ("fetcher", *(stage for stage in ANALYSIS_STAGES if stage != "resizer"))
EVERYTHING = Profile(stages=ANALYSIS_STAGES)
STORING = ("ocr", "detector", "barcodes")  # the fetcher stores no result, nor does the embedder without weights
CALM = "calm"  # the owner of the run without kills: results are never shared between owners


@pytest.fixture(scope="module")
def web(images_dir: Path) -> Iterator[str]:
    """Return the base URL of a web server of the test images."""
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
    """Return all agents running; those to be killed read their strike point from a file."""
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
def test_a_killed_model_agent_loses_and_duplicates_nothing(
    point: str, name: str, deployment: Deployment, web: str
) -> None:
    """All are killed on one image at the same point and restarted: one outcome, the same results."""
    calm, image, url = new_image_id(), new_image_id(), f"{web}/{name}"
    deployment.publish(topics.FETCH_REQUESTED, FetchRequested(image_id=calm, owner=CALM, url=url, profile=EVERYTHING))
    until(lambda: calm in deployment.outcomes(), "the outcome of the calm run")
    deployment.until_idle(*topics.AGENTS)
    killed = STORING if point == "after-object" else AGENTS
    for agent in killed:
        _strike_file(deployment, agent).write_text(point)
    deployment.publish(topics.FETCH_REQUESTED, FetchRequested(image_id=image, url=url, profile=EVERYTHING))
    for agent in killed:
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
    """Return the stored results of an owner, by input, stage and parameters."""
    return {
        key.removeprefix(f"results/{owner}/"): json.dumps(json.loads(deployment.read(key))["result"], sort_keys=True)
        for key in deployment.keys(f"results/{owner}/")
        if any(f"/{stage}/" in key for stage in STORING)
    }
