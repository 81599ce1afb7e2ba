"""The folder of local mode: its objects, events, keys and logs are for its user only."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path


async def private_folder(folder: Path) -> Path:
    """Create a folder that only its user can enter, and return its absolute path. Raises OSError.

    Files that this process and its children create from now on have mode 0600, folders 0700. What an earlier version
    created keeps its mode, inside a folder that others cannot enter.
    """
    os.umask(0o077)
    return await asyncio.to_thread(_create, folder)


def _create(folder: Path) -> Path:
    found = folder.resolve()
    found.mkdir(parents=True, exist_ok=True)
    found.chmod(0o700)
    return found
