"""Readiness asks every part, within a bound, and believes no part that breaks."""

from __future__ import annotations

import asyncio

from gateway.readiness import Parts


async def well() -> tuple[bool, str]:
    return True, "fine"


async def test_a_part_that_breaks_or_hangs_is_not_ready() -> None:
    """A part that raises, and one that never answers, do not work; the others are still told."""

    async def breaks() -> tuple[bool, str]:
        raise RuntimeError("password=hunter2")

    async def hangs() -> tuple[bool, str]:
        await asyncio.Event().wait()
        return True, ""

    found = await Parts({"a": well, "b": breaks, "c": hangs}, timeout_s=0.05).check()
    assert found == {"a": (True, "fine"), "b": (False, "does not answer"), "c": (False, "does not answer")}


async def test_parts_are_asked_once_for_many_probes() -> None:
    """Within the cache time many probes at once cost every part one question."""
    asked = 0

    async def counts() -> tuple[bool, str]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return True, ""

    parts = Parts({"a": counts}, timeout_s=1, cache_s=3600)
    await asyncio.gather(*(parts.check() for _ in range(20)))
    assert asked == 1
    parts.cache_s = -1
    await parts.check()
    assert asked == 2
