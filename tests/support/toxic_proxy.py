"""The fault-injecting proxy in a thread, for tests without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from tests.support.tcp_proxy import CALM, Proxy, Toxin, running_proxy


class ToxicStore:
    """An object store behind a fault-injecting proxy; clients connect to `endpoint`."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy = proxy
        self._loop = loop

    @property
    def endpoint(self) -> str:
        """`host:port` of the proxy."""
        return self._proxy.endpoint

    @contextmanager
    def injecting(self, toxin: Toxin) -> Iterator[None]:
        """Inject a fault within the block."""
        self._set(toxin)
        try:
            yield
        finally:
            self._set(CALM)

    def _set(self, toxin: Toxin) -> None:
        done: Future[None] = Future()

        def change() -> None:
            self._proxy.toxin = toxin
            done.set_result(None)

        self._loop.call_soon_threadsafe(change)
        done.result(30)


@contextmanager
def toxic(target: str) -> Iterator[ToxicStore]:
    """Run a proxy for `host:port`."""
    started: Future[tuple[ToxicStore, Callable[[], object]]] = Future()

    async def run() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        async with running_proxy(target) as proxy:
            started.set_result((ToxicStore(proxy, loop), lambda: loop.call_soon_threadsafe(ended.set)))
            await ended.wait()

    # asyncio.run also cancels the connections that are still open.
    thread = threading.Thread(target=lambda: asyncio.run(run()), name="toxic", daemon=True)
    thread.start()
    store, end = started.result(30)
    try:
        yield store
    finally:
        end()
        thread.join(30)
