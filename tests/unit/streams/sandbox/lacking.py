"""Functions for children on systems that lack parts of the confinement.

Importing this module in a child removes the parts named by the child's function; in other processes it changes nothing.
"""

from __future__ import annotations

import errno
import os
import sys

from pydantic import JsonValue

from streams.sandbox import containment
from tests.unit.streams.sandbox import attacks


def without_landlock(args: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
    """See attacks.attack."""
    return attacks.attack(args, data)


def without_seccomp(args: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
    """See attacks.attack."""
    return attacks.attack(args, data)


def without_anything(args: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
    """See attacks.attack."""
    return attacks.attack(args, data)


def _unsupported() -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


match sys.argv[1:2]:
    case [function] if function == f"{__name__}:without_landlock":
        containment.PARTS["Landlock"] = _unsupported
    case [function] if function == f"{__name__}:without_seccomp":
        containment.PARTS["seccomp"] = _unsupported
    case [function] if function == f"{__name__}:without_anything":
        containment.PARTS.update(dict.fromkeys(containment.PARTS, _unsupported))
