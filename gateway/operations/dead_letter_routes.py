"""Dead letters over HTTP: list, show, replay and discard, as `darkroom dead-letters` does.

An event's body is returned only on request, for one dead letter, and never for a deleted image.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import urlencode

import structlog
from fastapi import Path, Query, Request, Response

from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.json_bodies import described, read_json
from gateway.http.problems import Problem, documented
from gateway.http.request_context import base_url
from gateway.http.timestamps import read_time
from gateway.settings import GatewaySettings
from schemas.http.operations import (
    LETTER_PATTERN,
    LETTERS,
    MAX_LETTERS,
    DiscardRequest,
    LetterAct,
    LetterActs,
    LetterDetail,
    LetterFilter,
    LetterPage,
    LetterView,
    ReplayRequest,
)
from schemas.http.problems import ProblemCode, ProblemItem
from streams.concurrency.timeouts import bounded
from streams.retries.dead_letter_listing import DeadLetterListing, Page, Place
from streams.retries.dead_letters import DeadLetter, Selection
from streams.topics import GIVES_UP

log = structlog.get_logger(__name__)

PATH = "/api/v1/admin/dead-letters"
READ_S = 60.0  # timeout of one page
ACT_S = 20.0  # after this time a request starts no further letter and returns a cursor
_AGENTS = f"one of: {', '.join(GIVES_UP)}"

Act = Callable[[DeadLetter], Awaitable[str]]
AgentName = Annotated[str, Path(description=_AGENTS)]


@dataclass(frozen=True, slots=True)
class AdminLetters:
    """The dead letter endpoints."""

    settings: GatewaySettings
    letters: DeadLetterListing | None  # None: this process reads none

    def routes(self) -> Routes:
        """Return the routes."""
        problems = documented(ProblemCode.INVALID_FIELD, ProblemCode.INVALID_CURSOR, ProblemCode.DEPENDENCY_UNAVAILABLE)
        routes = Routes(PATH, tags=["admin"], responses=problems)
        routes.add_api_route(
            "",
            self.page,
            dependencies=[requires(Scope.ADMIN)],
            summary="List dead letters",
            response_model_exclude_none=True,
        )
        routes.add_api_route(
            "/replay",
            self.replay,
            methods=["POST"],
            dependencies=[requires(Scope.ADMIN)],
            summary="Replay dead letters",
            openapi_extra=described(ReplayRequest),
            response_model_exclude_none=True,
        )
        routes.add_api_route(
            "/discard",
            self.discard,
            methods=["POST"],
            dependencies=[requires(Scope.ADMIN)],
            summary="Discard dead letters",
            openapi_extra=described(DiscardRequest),
            response_model_exclude_none=True,
        )
        routes.add_api_route(
            "/{agent}/{letter_id}",
            self.one,
            dependencies=[requires(Scope.ADMIN)],
            summary="Get a dead letter",
            response_model_exclude_none=True,
            responses=documented(ProblemCode.NOT_FOUND),
        )
        return routes

    async def page(
        self,
        request: Request,
        response: Response,
        agent: Annotated[str | None, Query(description=_AGENTS, json_schema_extra={"enum": list(GIVES_UP)})] = None,
        code: Annotated[str | None, Query(max_length=64)] = None,
        image_id: Annotated[str | None, Query(max_length=64)] = None,
        since: Annotated[
            str | None,
            Query(description="dead-lettered since this time", json_schema_extra={"format": "date-time"}),
        ] = None,
        handled: Annotated[bool, Query(description="include replayed, discarded and erased ones")] = False,
        limit: Annotated[int, Query(ge=1, le=MAX_LETTERS)] = LETTERS,
        cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
    ) -> LetterPage:
        """List dead letters by agent, partition and offset. An empty page with a `next_cursor` is not the last one."""
        died = read_time(since, "since")
        wanted = Selection(code, image_id, None, _text(died))
        found = await self._page(_agents(agent), wanted, cursor=cursor, limit=limit, handled=handled)
        following = _cursor(found.next)
        if following:
            query = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
            base = base_url(request, self.settings)
            response.headers["Link"] = f'<{base}{PATH}?{urlencode([*query, ("cursor", following)])}>; rel="next"'
        return LetterPage(letters=tuple(map(_view, found.letters)), next_cursor=following)

    async def one(
        self,
        agent: AgentName,
        letter_id: Annotated[str, Path(pattern=LETTER_PATTERN)],
        payload: Annotated[bool, Query(description="include the event's body")] = False,
    ) -> LetterDetail:
        """Return headers, reason and stack, with `payload` the body. For a deleted image only that it exists."""
        partition, _, offset = letter_id.partition("-")
        letter = None
        if agent in GIVES_UP:
            letter = await bounded(self._listing().one(agent, int(partition), int(offset)), READ_S)
        if letter is None:
            raise Problem(ProblemCode.NOT_FOUND, "No dead letter of this agent has this id.")
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in letter.record.headers}
        body = (letter.record.value or b"").decode("utf-8", "replace") if payload else None
        if payload:
            log.info("dead letter body read", agent=agent, letter=letter_id)
        return LetterDetail(**_view(letter).model_dump(), headers=headers, payload=body)

    async def replay(self, request: Request) -> LetterActs:
        """Send dead letters to their agent's retry topic, each once; an event at most three times. Default: dry run."""
        requested = await read_json(request, ReplayRequest, self.settings)

        async def act(letter: DeadLetter) -> str:
            done = await self._listing().store.replay_one(letter, dry_run=requested.dry_run)
            if done == "replayed":
                await asyncio.sleep(1 / requested.per_second)
            return done

        return await self._act(requested, act)

    async def discard(self, request: Request) -> LetterActs:
        """Mark dead letters as discarded, with time and reason; they are not listed or replayed. Default: dry run."""
        requested = await read_json(request, DiscardRequest, self.settings)

        async def act(letter: DeadLetter) -> str:
            return await self._listing().store.discard_one(letter, reason=requested.reason, dry_run=requested.dry_run)

        return await self._act(requested, act)

    async def _act(self, requested: LetterFilter, act: Act) -> LetterActs:
        if requested.letter_id is not None and requested.agent is None:
            raise _invalid_field("agent", "is required with letter_id")
        wanted = Selection(requested.code, requested.image_id, requested.letter_id, _text(requested.since))
        found = await self._page(_agents(requested.agent), wanted, cursor=requested.cursor, limit=requested.limit)
        acts: list[LetterAct] = []
        following, until = found.next, time.monotonic() + ACT_S
        for letter in found.letters:
            if time.monotonic() >= until:
                following = Place(letter.agent, letter.record.partition, letter.record.offset)
                break
            done = await bounded(act(letter), self.settings.storage_timeout_s + self.settings.delivery_timeout_s)
            acts.append(LetterAct.model_validate({**_view(letter).model_dump(), "act": done}))
            if not requested.dry_run:
                event = f"dead letter {done}" if done in ("replayed", "discarded") else "dead letter unchanged"
                log.warning(event, agent=letter.agent, letter=letter.id, act=done)
        return LetterActs(dry_run=requested.dry_run, acts=tuple(acts), next_cursor=_cursor(following))

    async def _page(
        self, agents: tuple[str, ...], wanted: Selection, *, cursor: str | None, limit: int, handled: bool = False
    ) -> Page:
        place = _place(cursor, agents)
        page = self._listing().page(agents, wanted, place=place, limit=limit, handled=handled)
        return await bounded(page, READ_S)

    def _listing(self) -> DeadLetterListing:
        if self.letters is None:
            raise Problem(
                ProblemCode.DEPENDENCY_UNAVAILABLE,
                "This process reads no dead letters.",
                headers={"Retry-After": str(self.settings.retry_after_s)},
            )
        return self.letters


def _view(letter: DeadLetter) -> LetterView:
    return LetterView(
        agent=letter.agent,
        id=letter.id,
        code=letter.code,
        message=letter.message,
        image_id=letter.image_id or None,
        attempts=_number(letter.record.header("dlq.attempt")),
        replays=letter.replays,
        died_at=letter.died_at,
        topic=letter.record.header("dlq.original.topic"),
        size_bytes=len(letter.record.value or b""),
        handled=letter.handled,
    )


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _agents(agent: str | None) -> tuple[str, ...]:
    if agent is None:
        return GIVES_UP
    if agent not in GIVES_UP:
        raise _invalid_field("agent", f"must be {_AGENTS}")
    return (agent,)


def _text(at: datetime | None) -> str | None:
    """Return a time in the format of dead letters, whose text order is the time order."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if at is not None else None


def _cursor(place: Place | None) -> str | None:
    if place is None:
        return None
    text = f"{place.agent}.{place.partition}.{place.offset}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _place(cursor: str | None, agents: tuple[str, ...]) -> Place | None:
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        agent, partition, offset = text.split(".")
        place = Place(agent, int(partition), int(offset))
    except (binascii.Error, ValueError):
        place = None
    if place is None or place.agent not in agents or _cursor(place) != cursor:
        detail = "Send `next_cursor` unchanged, with the same agent."
        raise Problem(ProblemCode.INVALID_CURSOR, detail, (ProblemItem(field="cursor", detail=detail),))
    return place


def _invalid_field(where: str, detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_FIELD, f"{where}: {detail}", (ProblemItem(field=where, detail=detail),))
