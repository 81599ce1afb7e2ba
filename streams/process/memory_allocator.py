"""Tunes glibc malloc to return freed image buffers (tens of megabytes) to the system.

By default glibc raises its mmap threshold as large blocks are freed, and uses an arena per thread; freed image buffers
then stay in the process. Fixing both bounds a worker's memory at little cost (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import ctypes.util

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
MAP_FROM = 1 << 20  # bytes; larger blocks are mapped separately, and unmapped when freed
ARENAS = 2


def tune_malloc() -> bool:
    """Fix the mmap threshold and the number of arenas; False without glibc. Call before threads start."""
    name = ctypes.util.find_library("c")
    if name is None:
        return False
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAP_FROM)) and bool(mallopt(_M_ARENA_MAX, ARENAS))
