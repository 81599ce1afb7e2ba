"""robots.txt (RFC 9309), read once a day and source, by the parser that Scrapy uses."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from protego import Protego

ROBOTS_BYTES = 500_000  # what a crawler must read at least: RFC 9309 section 2.5
_VALID_S = 86_400.0  # the longest time a copy may be used: section 2.4
_MAX_KEPT = 10_000  # sources


@dataclass(frozen=True, slots=True)
class _Kept:
    rules: Protego
    until: float  # monotonic


class RobotsFiles:
    """The rules of sources for one user agent, kept in memory."""

    def __init__(self, user_agent: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._user_agent = user_agent
        self._monotonic = monotonic
        self._kept: dict[str, _Kept] = {}

    async def allows(self, url: str, origin: str, read: Callable[[str], Awaitable[str]]) -> bool:
        """Return whether the rules of a URL's origin (`https://host`) allow it.

        `read` returns an origin's file as text, "" if there is none; what it raises is raised here.
        """
        kept = self._kept.get(origin)
        if kept is None or kept.until < self._monotonic():
            rules = Protego.parse(await read(origin))
            kept = self._kept[origin] = _Kept(rules, self._monotonic() + _VALID_S)
            if len(self._kept) > _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
        return bool(kept.rules.can_fetch(url, self._user_agent))
