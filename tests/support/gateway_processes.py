"""Gateway processes on one Kafka and one object store."""

from __future__ import annotations

import httpx

from infra.local.ports import choose
from tests.support.deployment import Deployment, until


def start_gateways(deployment: Deployment, count: int, **settings: str) -> list[str]:
    """Start `count` `darkroom gateway` processes; return their base URLs once all are live."""
    ports = [choose(0) for _ in range(count)]
    for number, port in enumerate(ports):
        deployment.start(f"gateway#{number}", DARKROOM_GATEWAY__PORT=str(port), **settings)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    for url in urls:
        until_live(deployment, url)
    return urls


def until_live(deployment: Deployment, url: str) -> None:
    """Wait until the gateway at a base URL answers; fail if a process of the deployment ended."""

    def answers() -> bool:
        deployment.check_alive()
        try:
            return httpx.get(f"{url}/health/live", timeout=5).is_success
        except httpx.TransportError:
            return False

    until(answers, f"{url} answering")
