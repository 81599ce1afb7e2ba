"""Load shedding: an overloaded gateway responds with 503 at once, and otherwise never."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI, Request

from gateway.http.load_shedding import LoopDelay, Overload, uncounted
from tests.support.gateway_components import client_of, refused


def app() -> FastAPI:
    """An app with an endpoint that blocks the event loop."""
    app = FastAPI()
    app.add_middleware(Overload, most_questions=10, most_late_s=0.2, retry_after_s=7)

    @app.get("/block")
    async def block() -> str:
        await asyncio.sleep(0)
        time.sleep(1.0)  # blocks the loop
        return "done"

    @app.get("/quick")
    async def quick() -> str:
        return "done"

    @app.get("/health/live")
    async def live() -> str:
        return "alive"

    return app


async def test_requests_are_refused_while_the_loop_is_late() -> None:
    """While the loop is late, requests are refused with Retry-After; before and after they are served."""
    async with client_of(app()) as client:
        assert (await client.get("/quick")).status_code == 200
        blocking = asyncio.create_task(client.get("/block"))
        late = [asyncio.create_task(client.get(path)) for path in ("/quick", "/health/live")]
        # Started after the blocking request, in the same iteration of the loop or the next.
        answers = [await blocking, *(await asyncio.gather(*late))]
        assert answers[0].status_code == 200
        assert answers[2].status_code == 200, "the liveness probe is always served"
        await asyncio.sleep(0.3)
        assert (await client.get("/quick")).status_code == 200


async def test_the_delay_of_the_loop_is_measured() -> None:
    """The delay is the time the loop was blocked beyond its timer, and returns to zero afterwards."""
    delay = LoopDelay()
    assert delay.late_s() == 0.0
    time.sleep(0.5)  # blocks the loop, on purpose
    assert delay.late_s() >= 0.3
    async with asyncio.timeout(30):
        while delay.late_s() > 0.2:
            await asyncio.sleep(0.01)


async def test_the_refusal_has_retry_after() -> None:
    """The response is a problem with Retry-After; the connection is closed if a body was not read."""
    whole = app()
    overload = Overload(whole, most_questions=10, most_late_s=-1.0, retry_after_s=7)  # always late
    async with client_of(overload) as client:  # type: ignore[arg-type]
        answer = await client.get("/quick")
        refused(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "7"
        assert "connection" not in answer.headers
        assert (await client.post("/quick")).headers["connection"] == "close"
        assert (await client.get("/health/live")).status_code == 200


async def test_reads_in_progress_are_limited() -> None:
    """One read too many is refused until the others have finished; uploads do not count."""
    whole, release, started = FastAPI(), asyncio.Event(), []
    whole.add_middleware(Overload, most_questions=3, most_late_s=60.0, retry_after_s=7)

    @whole.api_route("/wait", methods=["GET", "POST"])
    async def wait() -> str:
        started.append(1)
        await release.wait()
        return "done"

    async with client_of(whole) as client:
        waiting = [asyncio.create_task(client.get("/wait")) for _ in range(3)]
        sending = [asyncio.create_task(client.post("/wait")) for _ in range(5)]
        async with asyncio.timeout(30):
            while len(started) < 8:
                await asyncio.sleep(0.01)
        refused(await client.get("/wait"), 503, "overloaded")
        release.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting, *sending)} == {200}
        assert (await client.get("/wait")).status_code == 200


async def test_a_read_is_not_counted_while_its_credentials_are_checked() -> None:
    """Within `uncounted` a read leaves its place to others, and takes it again afterwards."""
    whole, checked, release, waiting = FastAPI(), asyncio.Event(), asyncio.Event(), []
    whole.add_middleware(Overload, most_questions=2, most_late_s=60.0, retry_after_s=7)

    @whole.get("/checked")
    async def check(request: Request) -> str:
        with uncounted(request.scope):
            waiting.append(1)
            await checked.wait()
        waiting.append(2)
        await release.wait()
        return "done"

    @whole.get("/quick")
    async def quick() -> str:
        return "done"

    async with client_of(whole) as client:
        reads = [asyncio.create_task(client.get("/checked")) for _ in range(2)]
        async with asyncio.timeout(30):
            while waiting.count(1) < 2:
                await asyncio.sleep(0.01)
            assert (await client.get("/quick")).status_code == 200
            checked.set()
            while waiting.count(2) < 2:
                await asyncio.sleep(0.01)
        refused(await client.get("/quick"), 503, "overloaded")
        release.set()
        assert {answer.status_code for answer in await asyncio.gather(*reads)} == {200}
        assert (await client.get("/quick")).status_code == 200
