"""A gateway that cannot keep up says so at once, and says nothing of it otherwise."""

from __future__ import annotations

import asyncio
import time

from fastapi import FastAPI

from gateway.http.load_shedding import Overload, Pulse
from tests.support.gateway_components import client_of, refused


def app() -> FastAPI:
    """An app whose endpoint blocks the loop when it is told to."""
    app = FastAPI()
    app.add_middleware(Overload, most_questions=10, most_late_s=0.2, retry_after_s=7)

    @app.get("/block")
    async def block() -> str:
        await asyncio.sleep(0)
        time.sleep(1.0)  # blocks the loop, as nothing here may
        return "done"

    @app.get("/quick")
    async def quick() -> str:
        return "done"

    @app.get("/health/live")
    async def live() -> str:
        return "alive"

    return app


async def test_requests_that_come_too_late_are_turned_away() -> None:
    """While the loop is behind, a request is refused with Retry-After; before and after it is served."""
    async with client_of(app()) as client:
        assert (await client.get("/quick")).status_code == 200
        blocking = asyncio.create_task(client.get("/block"))
        late = [asyncio.create_task(client.get(path)) for path in ("/quick", "/health/live")]
        # Begun behind the one that blocks, in the same turn of the loop or the next.
        answers = [await blocking, *(await asyncio.gather(*late))]
        assert answers[0].status_code == 200
        assert answers[2].status_code == 200, "who watches is always answered"
        await asyncio.sleep(0.3)
        assert (await client.get("/quick")).status_code == 200


async def test_a_pulse_knows_how_late_the_loop_is() -> None:
    """It is late by as long as the loop was blocked beyond its next beat, and in time again after a turn."""
    pulse = Pulse()
    assert pulse.late_s() == 0.0
    time.sleep(0.5)  # blocks the loop, on purpose
    assert pulse.late_s() >= 0.3
    async with asyncio.timeout(30):
        while pulse.late_s() > 0.2:
            await asyncio.sleep(0.01)


async def test_the_refusal_says_when_to_come_again() -> None:
    """The answer is a problem with its code and Retry-After; the connection is closed if a body was not read."""
    whole = app()
    overload = Overload(whole, most_questions=10, most_late_s=-1.0, retry_after_s=7)  # always too late
    async with client_of(overload) as client:  # type: ignore[arg-type]
        answer = await client.get("/quick")
        refused(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "7"
        assert "connection" not in answer.headers
        assert (await client.post("/quick")).headers["connection"] == "close"
        assert (await client.get("/health/live")).status_code == 200


async def test_no_more_questions_are_in_work_than_may_be() -> None:
    """One question too many is refused while the others wait, and served when they are answered; uploads are none."""
    whole, go_on, begun = FastAPI(), asyncio.Event(), []
    whole.add_middleware(Overload, most_questions=3, most_late_s=60.0, retry_after_s=7)

    @whole.api_route("/wait", methods=["GET", "POST"])
    async def wait() -> str:
        begun.append(1)
        await go_on.wait()
        return "done"

    async with client_of(whole) as client:
        waiting = [asyncio.create_task(client.get("/wait")) for _ in range(3)]
        sending = [asyncio.create_task(client.post("/wait")) for _ in range(5)]
        async with asyncio.timeout(30):
            while len(begun) < 8:
                await asyncio.sleep(0.01)
        refused(await client.get("/wait"), 503, "overloaded")
        go_on.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting, *sending)} == {200}
        assert (await client.get("/wait")).status_code == 200
