"""A gateway killed between claiming an Idempotency-Key and its response: the retry creates the same image, once."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.client import Darkroom, Unreachable
from infra.local.kafka import LocalKafka
from infra.local.ports import choose
from schemas.http.submissions import Submitted
from streams import topics
from tests.support.deployment import KILLED, PATIENCE_S, Deployment, deployed, until
from tests.support.gateway_components import JPEG
from tests.support.gateway_processes import until_live

LEASE = {"DARKROOM_GATEWAY__IDEMPOTENCY_LEASE_S": "2"}
KEY = "8e03978e-40d5-43dd-bc93-6894a57f9324"


def test_a_key_survives_the_gateway_that_claimed_it(kafka: LocalKafka, tmp_path: Path) -> None:
    """SIGKILL while Kafka does not answer: after its lease the key is usable and names the image first chosen."""
    with (
        deployed(kafka.bootstrap, tmp_path, agents=(), settings=LEASE) as deployment,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):  # accepts connections and never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        first = _gateway(deployment, "gateway#first", DARKROOM_KAFKA__BOOTSTRAP=address)
        with ThreadPoolExecutor(1) as beside:
            lost = beside.submit(_submit, first, tries=1)
            until(
                lambda: bool(deployment.keys("idempotency/") and deployment.keys("jobs/")), "the claim and the receipt"
            )
            child = deployment.children["gateway#first"]
            child.kill()
            assert child.wait_blocking(PATIENCE_S) == KILLED
            with pytest.raises(Unreachable):
                lost.result(PATIENCE_S)
        (receipt,) = deployment.keys("jobs/")
        assert not deployment.records(topics.UPLOADED), "the first gateway delivered nothing to Kafka"

        second = _gateway(deployment, "gateway#second")
        accepted = _submit(second, tries=60)
        assert receipt == f"jobs/{accepted.job_id}.json", "the image id chosen by the killed gateway"
        assert _submit(second, tries=1) == accepted
        assert deployment.keys("jobs/") == {receipt}
        assert len(deployment.keys("originals/")) == 1
        subjects = [record.header("ce_subject") for record in deployment.records(topics.UPLOADED)]
        assert subjects == [accepted.image_id]


def _gateway(deployment: Deployment, name: str, **settings: str) -> str:
    """Start a gateway; return its base URL once it is live."""
    port = choose(0)
    deployment.start(name, DARKROOM_GATEWAY__PORT=str(port), **settings)
    address = f"http://127.0.0.1:{port}"
    until_live(deployment, address)
    return address


def _submit(address: str, *, tries: int) -> Submitted:
    with Darkroom(address, tries=tries) as client:
        return client.submit(JPEG, filename="cat.jpg", metadata={"album": "pets"}, idempotency_key=KEY)
