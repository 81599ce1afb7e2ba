"""The C allocator, told to give memory back: image buffers come and go by the tens of megabytes.

glibc raises its threshold for separate mappings as large blocks are freed, and keeps an arena per thread; freed image
buffers then stay in the process. Fixed, both cost little and bound what a worker holds (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import ctypes.util

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
MAP_FROM = 1 << 20  # bytes; larger blocks are mapped, and unmapped when freed
ARENAS = 2


def tune_malloc() -> bool:
    """Set it up; False where the C library is another one, which has its own ways. Call before threads start."""
    name = ctypes.util.find_library("c")
    if name is None:
        return False
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAP_FROM)) and bool(mallopt(_M_ARENA_MAX, ARENAS))
