"""Reading a process's settings and mapping start-up errors to exit codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Coroutine

import structlog
from pydantic import ValidationError
from pydantic_settings import SettingsError

from streams.errors import DependencyUnavailable, NotReady
from streams.process.exit_codes import EXIT_NOT_READY, EXIT_UNDELIVERABLE
from streams.process.memory_allocator import tune_malloc
from streams.settings import Settings
from streams.telemetry.logs import configure_logs

log = structlog.get_logger(__name__)

_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|REDIS")


def read_settings(process: str) -> Settings:
    """Read the shared settings, set up logging and memory; exit 2 naming what is wrong."""
    tune_malloc()
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        raise SystemExit(explain(error)) from error
    configure_logs(settings.telemetry, process=process)
    log.info("settings", **settings.model_dump(mode="json"))
    return settings


def explain(error: ValidationError | SettingsError) -> int:
    """Write one line per wrong setting to stderr, naming its variable, and no secret; return the exit code."""
    if isinstance(error, SettingsError):  # a list or an object that is no JSON
        sys.stderr.write(f"DARKROOM_*: {error}\n")
        return EXIT_NOT_READY
    for item in error.errors(include_url=False):
        variable = "DARKROOM_" + "__".join(str(part).upper() for part in item["loc"])
        given = item.get("input")
        open_ = not _SECRET.search(variable) and not isinstance(given, dict | list | tuple)  # they may hold secrets
        sys.stderr.write(f"{variable}: {item['msg']}" + (f" (it is {given!r})" if open_ else "") + "\n")
    return EXIT_NOT_READY


async def guarded(body: Coroutine[object, object, None]) -> int:
    """Run a process's body; return the exit code that says how it ended."""
    try:
        await body
    except NotReady as error:
        log.critical("cannot start", reason=str(error))
        return EXIT_NOT_READY
    except DependencyUnavailable as error:
        log.critical("a dependency is away", reason=str(error))
        return EXIT_UNDELIVERABLE
    return 0
