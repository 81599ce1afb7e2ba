"""Exit codes, and immediate exits that lose no event."""

from __future__ import annotations

import os
import sys

import structlog

log = structlog.get_logger(__name__)

EXIT_NOT_DRAINED = 1
EXIT_NOT_READY = 2
EXIT_UNDELIVERABLE = 70
EXIT_FAUST_STOPPED = 72


def exit_undeliverable(error: BaseException) -> None:
    """Exit at once, since continuing would lose an event; Kafka redelivers to the next consumer."""
    log.critical("exiting so that Kafka redelivers", error=repr(error))
    sys.stderr.flush()
    os._exit(EXIT_UNDELIVERABLE)


def exit_faust_stopped(stage: str) -> None:
    """Exit at once, since a worker whose Faust stopped consumes nothing and must not appear alive."""
    log.critical("Faust stopped by itself", stage=stage)
    sys.stderr.flush()
    os._exit(EXIT_FAUST_STOPPED)
