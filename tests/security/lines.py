"""Raw TCP connections to a gateway, for requests that no HTTP library sends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

PATIENCE_S = 60.0  # timeout of every wait
PAUSE_S = 0.02  # between two bytes of a slow client


@dataclass
class Line:
    """One connection, which reads all the time, as ordinary clients do."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sent: int = 0
    received: bytearray = field(default_factory=bytearray)
    ended: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    reading: asyncio.Task[None] | None = None

    async def read(self) -> None:
        with suppress(ConnectionError):
            while some := await self.reader.read(65536):
                self.received += some
                self.news.set()
        self.ended = True
        self.news.set()

    async def send(self, data: bytes) -> bool:
        """Send; return whether the connection is open and no response has begun."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return False
        self.sent += len(data)
        return not self.ended and not self.received

    async def drip(self, data: Iterator[bytes], pause_s: float = PAUSE_S) -> None:
        """Send piece by piece until a response or the end of the connection."""
        async with asyncio.timeout(PATIENCE_S):
            for some in data:
                if not await self.send(some):
                    return
                await asyncio.sleep(pause_s)

    async def rest(self) -> bytes:
        """Wait for the end of the connection; return the received bytes."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.ended:
                self.news.clear()
                await self.news.wait()
        await self.close()
        return bytes(self.received)

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return the next response."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                head, end, body = bytes(self.received).partition(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
                length = int(headers.get("content-length", 0))
                if end and len(body) >= length:
                    del self.received[: len(head) + len(end) + length]
                    return int(lines[0].split()[1]), headers, body[:length]
                assert not self.ended, f"the connection ended: {bytes(self.received)!r}"
                self.news.clear()
                await self.news.wait()


async def connected(port: int) -> Line:
    """Connect to a local gateway."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    line = Line(reader, writer)
    line.reading = asyncio.create_task(line.read())
    return line
