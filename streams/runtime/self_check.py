"""Self-check: whether a stage's failures depend on its input, before they pause the stage for every owner.

Dead letters of several owners stop a stage. Those of fewer owners stop it only if it fails on its own test input as
well (`Stage.probe`); a stage without one continues.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import structlog

from schemas.events.envelope import Record
from schemas.values import DEFAULT_OWNER
from streams.retries.dead_letter_limit import DeadLetterLimit
from streams.stage import Stage, StageSettings

log = structlog.get_logger(__name__)


def owner_of(record: Record) -> str | None:
    """Return the owner that a record names, the default one if it names none, None if it is not a JSON object."""
    try:
        body = json.loads(record.value or b"")
    except (ValueError, RecursionError):
        return None
    if isinstance(body, dict) and "specversion" in body:  # CloudEvents structured mode
        body = body.get("data")
    owner = body.get("owner", DEFAULT_OWNER) if isinstance(body, dict) else None
    return owner if isinstance(owner, str) else None


class SelfCheck:
    """Notes how each event ended; halts the stage when it is the stage that fails, not its input."""

    def __init__(
        self,
        stage: Stage[Any, Any, Any],
        tools: Any,
        settings: StageSettings,
        limit: DeadLetterLimit,
        halt: Callable[[str], None],
    ) -> None:
        self._stage = stage
        self._tools = tools
        self._deadline_s = settings.deadline_s
        self._limit = limit
        self._halt = halt
        self._checking = False

    async def note(self, record: Record, *, died: bool) -> None:
        """Count an event that ended; at the limit, check the stage (at most `deadline_s`) unless several owners failed.

        Calls `halt` with the reason. While one check runs, others are not started.
        """
        reached = self._limit.note(died=died, owner=owner_of(record) if died else None)
        if reached is None:
            return
        if reached.by_several:
            self._halt(reached.reason)
            return
        if self._checking:
            return
        self._checking = True
        try:
            if await self._is_broken(reached.reason):
                self._halt(reached.reason)
            else:
                self._limit.works()
        finally:
            self._checking = False

    async def _is_broken(self, reason: str) -> bool:
        """Return whether the stage fails on its own input; one that is only slow, or has none, counts as working."""
        bound = log.bind(stage=self._stage.name, reason=reason)
        if self._stage.probe is None:
            bound.warning("dead-letter limit reached by fewer than three owners; the stage cannot check itself")
            return False
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._stage.probe(self._tools)
        except TimeoutError:
            bound.warning("dead-letter limit reached by fewer than three owners; the self-check timed out")
            return False
        except Exception as error:
            bound.error("the stage fails on its own input", error=repr(error)[:500])
            return True
        bound.warning("dead-letter limit reached by fewer than three owners; the stage itself works")
        return False
