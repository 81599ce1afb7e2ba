"""Why a task of the sandbox has no result."""

from __future__ import annotations


class SandboxError(Exception):
    """The task has no result. The sandbox stays usable: the next task gets a new child if needed.

    `retryable`: the child exited or hung without a result, so the cause may be outside the input: low memory, a signal.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class SandboxRefused(SandboxError):
    """The function rejected the input: it raised an exception with string attributes `code` and `message`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class SandboxFailed(SandboxError):
    """The function raised another exception or its result is invalid: a bug. The text ends in the child's traceback."""


class SandboxCrashed(SandboxError):
    """The child exited during the task: a segmentation fault, an abort, an exit."""


class SandboxTimeout(SandboxError):
    """The task exceeded its CPU time or its wall time."""


class SandboxMemory(SandboxError):
    """The task exceeded its memory limit."""


class SandboxUnavailable(SandboxError):
    """No child could be started, or the sandbox is closing. Unrelated to the input; a retry may help."""


class SandboxNotContained(SandboxUnavailable):
    """This system lacks a required part of the confinement; a retry does not help."""
