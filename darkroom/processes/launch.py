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
    """Return the shared settings, with logging and malloc configured; exit 2 with one line per wrong setting."""
    tune_malloc()
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        raise SystemExit(explain(error)) from error
    configure_logs(settings.telemetry, process=process)
    log.info("settings", **settings.model_dump(mode="json"))
    return settings


def explain(error: ValidationError | SettingsError) -> int:
    """Write one line per wrong setting to stderr, without secret values; return the exit code."""
    if isinstance(error, SettingsError):  # a list or object with invalid JSON
        sys.stderr.write(f"DARKROOM_*: {error}\n")
        return EXIT_NOT_READY
    for item in error.errors(include_url=False):
        variable = "DARKROOM_" + "__".join(str(part).upper() for part in item["loc"])
        given = item.get("input")
        public = not _SECRET.search(variable) and not isinstance(given, dict | list | tuple)  # may contain secrets
        sys.stderr.write(f"{variable}: {item['msg']}" + (f" (it is {given!r})" if public else "") + "\n")
    return EXIT_NOT_READY


async def guarded(body: Coroutine[object, object, None]) -> int:
    """Run a process's body; return its exit code."""
    try:
        await body
    except NotReady as error:
        log.critical("cannot start", reason=str(error))
        return EXIT_NOT_READY
    except DependencyUnavailable as error:
        log.critical("dependency unavailable", reason=str(error))
        return EXIT_UNDELIVERABLE
    return 0
