"""The whole pipeline on a Kafka with SASL_SSL and ACLs: every process is a user with the documented ACLs only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gateway.client import Darkroom, Refused, Unreachable
from infra.local.kafka import LocalKafka
from infra.local.kafka_security import Secured
from schemas.values import ImageState, Lane
from streams import topics
from streams.kafka.access_rules import rules_of
from tests.support.deployment import deployed, until
from tests.support.gateway_processes import until_live
from tests.support.secured_kafka import grant, sasl_fields, variables

pytestmark = [pytest.mark.lengthy, pytest.mark.timeout(600)]  # it waits for the models

ROLES = {"core": "core-embedded", "router": "router", **{agent: agent for agent in topics.AGENTS if agent != "indexer"}}
DONE_S = 240.0
EXIT_NOT_READY = 2


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Secured:
    """Return certificates, and a user for each process."""
    return Secured(
        tmp_path_factory.mktemp("certificates"),
        {name: f"password-of-{name}" for name in (*ROLES, "gateway", "query", "reconciler")},
    )


@pytest.fixture(scope="module")
def broker(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """Return a Kafka that authenticates and authorizes."""
    server = LocalKafka(tmp_path_factory.mktemp("kafka-secured"), port=0, secured=secured)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


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


def test_images_pass_every_process_from_upload_to_result(
    broker: LocalKafka,
    secured: Secured,
    web: str,
    images: dict[str, bytes],
    models_dir: Path,
    models_cache: Path,
    tmp_path: Path,
) -> None:
    """An upload, one in the bulk lane and a fetch complete, without dead letters; no log contains a password."""
    settings = {
        "DARKROOM_MODELS__DIR": str(models_dir),
        "DARKROOM_MODELS__CACHE": str(models_cache),
        "DARKROOM_OCR__POLICY": "tesseract",  # EasyOCR loads slowly and adds nothing here
        "DARKROOM_FETCHER__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    }
    with deployed(broker.bootstrap, tmp_path, settings=settings) as deployment:
        for process, role in ROLES.items():
            grant(broker, deployment.kafka, process, rules_of(role))
            deployment.start(process, **variables(sasl_fields(broker, secured, process)))
        deployment.until_ready(*topics.AGENTS)
        with deployment.client() as client:
            submitted = [
                client.submit(images["formats/cat.jpg"]),
                client.submit(images["formats/5_webp_a.webp"], lane=Lane.BULK),
                client.submit(f"{web}/clip_golden/123_456.jpg"),
            ]
            deployment.until_ended([image.image_id for image in submitted])
            results = [client.wait(image.job_id, timeout_s=DONE_S) for image in submitted]
        assert [result.status for result in results] == [ImageState.COMPLETED] * len(submitted)
        deployment.until_idle(*topics.AGENTS)
        deployment.check_ended_once([image.image_id for image in submitted])
        assert not [letter for agent in topics.GIVES_UP for letter in deployment.records(topics.dead_topic(agent))]
        logs = {process: deployment.log_file(process).read_text() for process in ROLES}
        assert not [process for process, text in logs.items() if secured.users[process] in text]


def test_a_process_without_its_acls_exits(
    broker: LocalKafka, secured: Secured, images: dict[str, bytes], tmp_path: Path
) -> None:
    """Each process names what is missing; with its own ACLs, the gateway publishes an upload."""
    with deployed(broker.bootstrap, tmp_path) as deployment:
        for process in ("gateway", "query", "core", "router", "reconciler"):
            deployment.start(process, **variables(sasl_fields(broker, secured, process)))
            assert deployment.children.pop(process).wait_blocking(DONE_S) == EXIT_NOT_READY
            assert "grant the ACLs in docs/kafka-security.md" in deployment.log_file(process).read_text()
        grant(broker, deployment.kafka, "gateway", rules_of("gateway"))
        deployment.start("gateway", **variables(sasl_fields(broker, secured, "gateway")))
        with deployment.client() as client:
            until(lambda: _accepted(client, images["formats/cat.jpg"]), "an accepted upload")
        assert len(deployment.records(topics.UPLOADED)) == 1


def test_a_query_gateway_needs_more_than_the_acls_of_an_ingest_gateway(
    broker: LocalKafka, secured: Secured, tmp_path: Path
) -> None:
    """With those of `gateway` alone it names what its dead letters, rates and reruns need; with its own it serves."""
    with deployed(broker.bootstrap, tmp_path) as deployment:
        own = variables(sasl_fields(broker, secured, "query"))
        grant(broker, deployment.kafka, "query", rules_of("gateway"))
        deployment.start("query", **own)
        assert deployment.children.pop("query").wait_blocking(DONE_S) == EXIT_NOT_READY
        text = deployment.log_file("query").read_text()
        assert f"Read on {deployment.kafka.topic(topics.dead_topic('ocr'))}" in text
        assert f"Read on {deployment.kafka.group('reader')}" in text
        assert f"Write on {deployment.kafka.topic(topics.UPLOADED.name)}" not in text
        grant(broker, deployment.kafka, "query", rules_of("query"))
        deployment.start("query", **own)
        until_live(deployment, f"http://127.0.0.1:{deployment.port}")


def _accepted(client: Darkroom, data: bytes) -> bool:
    try:
        client.submit(data, idempotency_key="the-same-upload-again")
    except (Refused, Unreachable):  # it is starting
        return False
    return True
