"""Connections to foreign servers: each resolves once, checks all addresses, and connects to a checked one.

DNS rebinding therefore has no effect. Host, SNI and the certificate check use the name.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path

import certifi
import httpcore
import httpx

from agents.core.url_guard import Address, Policy, check_addresses

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


async def resolve(host: str, port: int) -> Sequence[Address]:
    """Resolve with the system's resolver. Raises socket.gaierror."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(sockaddr[0])) for *_, sockaddr in found]


class GuardedNetwork(httpcore.AnyIOBackend):
    """Connects only to addresses that passed the guard. Raises UrlNotAllowed, socket.gaierror."""

    def __init__(self, policy: Policy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        check_addresses(addresses, self._policy)
        failure: Exception | None = None
        for address in addresses:
            try:
                return await super().connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport, HTTP/1.1 with a connection pool, on a guarded network."""

    def __init__(self, policy: Policy, resolve: Resolve, *, ca_file: Path | None, max_connections: int) -> None:
        trusted = ssl.create_default_context(cafile=certifi.where())
        if ca_file is not None:
            trusted.load_verify_locations(ca_file)
        super().__init__(verify=trusted, trust_env=False)
        # httpx takes no network as an argument, so its pool is replaced by the same pool with one.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trusted,
            max_connections=max_connections,
            keepalive_expiry=5.0,
            network_backend=GuardedNetwork(policy, resolve),
        )
