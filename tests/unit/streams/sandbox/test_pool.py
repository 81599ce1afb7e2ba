from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from streams.sandbox import child_process
from streams.sandbox.child_process import ChildProcess, Limits
from streams.sandbox.errors import (
    SandboxCrashed,
    SandboxFailed,
    SandboxMemory,
    SandboxRefused,
    SandboxTimeout,
    SandboxUnavailable,
)
from streams.sandbox.pool import Sandbox

SMALL = Limits(memory_mb=256, cpu_s=20, wall_s=60.0, answer_mb=32)


class Rejected(Exception):
    code = "rejected"
    message = "The input is rejected."


def misbehave(  # noqa: PLR0912
    args: dict[str, JsonValue], data: bytes
) -> tuple[dict[str, JsonValue], list[bytes]]:
    """Misbehave as `do` names; with `once`, only in the child with that number."""
    if "once" in args and str(args["once"]) != os.environ["NUMBER"]:
        return {"pid": os.getpid()}, [data[::-1]]
    match args.get("do"):
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "bomb":
            allocated = []
            while True:
                allocated.append(bytearray(16 << 20))
        case "spin":
            while True:
                pass
        case "sleep":
            time.sleep(600)
        case "exit":
            sys.exit(3)
        case "refuse":
            raise Rejected
        case "fail":
            raise KeyError("a bug")
        case "huge":
            return {}, [bytes(40 << 20)]
        case "long header":
            return {"text": "x" * (2 << 20)}, []
        case "nonsense":
            os.write(_link_fd(), b"\x00\x00\x00\x02[]")
        case "write":
            Path(str(args["path"])).write_bytes(b"x" * 100)
        case "look":
            return {"env": list(os.environ), "fds": sum(1 for _ in _open_files())}, []
    return {"pid": os.getpid(), "size": len(data)}, [data[::-1]]


def _open_files() -> Iterator[tuple[int, int]]:
    """Yield the open descriptors and their modes, without /proc, which the child cannot read."""
    for descriptor in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        with contextlib.suppress(OSError):
            yield descriptor, os.fstat(descriptor).st_mode


def _link_fd() -> int:
    return next(descriptor for descriptor, mode in _open_files() if stat.S_ISSOCK(mode))


@pytest.fixture
def tasks_sent(monkeypatch: pytest.MonkeyPatch) -> list[JsonValue]:
    """Return a list to which every task's `do` is added when it is sent to a child; number the children from 1."""
    sent: list[JsonValue] = []
    numbers = itertools.count(1)
    environment, run = child_process._environment, ChildProcess.run

    async def recorded(
        child: ChildProcess, args: dict[str, JsonValue], data: bytes
    ) -> tuple[dict[str, JsonValue], list[bytes]]:
        sent.append(args.get("do"))
        return await run(child, args, data)

    monkeypatch.setattr(child_process, "_environment", lambda: {**environment(), "NUMBER": str(next(numbers))})
    monkeypatch.setattr(ChildProcess, "run", recorded)
    return sent


FUNCTION = f"{__name__}:misbehave"


async def test_one_child_serves_several_tasks() -> None:
    """A task's input reaches the function and its result the caller; the same child runs the next task."""
    async with Sandbox(FUNCTION, limits=SMALL) as sandbox:
        data = os.urandom(3 << 20)
        first, blobs = await sandbox.run({}, data)
        second, _ = await sandbox.run({}, b"")
    assert blobs == [data[::-1]]
    assert first["pid"] == second["pid"]


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("segfault", SandboxCrashed),
        ("exit", SandboxCrashed),
        ("bomb", SandboxMemory),
        ("fail", SandboxFailed),
        ("huge", SandboxFailed),
        ("long header", SandboxFailed),
        ("nonsense", SandboxFailed),
    ],
)
async def test_a_failing_task_does_not_affect_the_next(what: str, error: type[Exception]) -> None:
    """A failing task raises the error of its kind, and the next task succeeds in a new child."""
    async with Sandbox(FUNCTION, limits=SMALL) as sandbox:
        before, _ = await sandbox.run({}, b"")
        with pytest.raises(error):
            await sandbox.run({"do": what}, b"")
        after, blobs = await sandbox.run({}, b"ab")
    assert blobs == [b"ba"]
    assert after["pid"] != before["pid"]


@pytest.mark.parametrize("what", ["segfault", "exit", "killed", "sleep"])
async def test_a_child_that_exits_without_a_result_is_retried_once(what: str, tasks_sent: list[JsonValue]) -> None:
    """An input whose child crashed, was killed or hung is processed by a new child."""
    async with Sandbox(FUNCTION, limits=Limits(memory_mb=256, wall_s=5.0)) as sandbox:
        before, _ = await sandbox.run({}, b"")
        after, blobs = await sandbox.run({"do": what, "once": 1}, b"ab", tries=2)
        again, _ = await sandbox.run({}, b"")
    assert blobs == [b"ba"]
    assert after["pid"] == again["pid"] != before["pid"]
    assert tasks_sent == [None, what, what, None]


@pytest.mark.parametrize(
    ("what", "error", "children"),
    [
        ("segfault", SandboxCrashed, 2),
        ("killed", SandboxMemory, 2),
        ("bomb", SandboxMemory, 1),
        ("spin", SandboxTimeout, 1),
        ("refuse", SandboxRefused, 1),
        ("fail", SandboxFailed, 1),
    ],
)
async def test_only_retryable_errors_are_retried(
    what: str, error: type[Exception], children: int, tasks_sent: list[JsonValue]
) -> None:
    """An error reported by the child is final; an exit without a result is retried once."""
    async with Sandbox(FUNCTION, limits=Limits(memory_mb=256, cpu_s=1, wall_s=250.0)) as sandbox:
        with pytest.raises(error):
            await sandbox.run({"do": what}, b"", tries=2)
        assert (await sandbox.run({}, b"ab"))[1] == [b"ba"]
    assert tasks_sent == [*[what] * children, None]


async def test_cpu_time_is_bounded_per_task() -> None:
    """A task in an endless loop is ended by its CPU limit, long before the wall limit."""
    async with Sandbox(FUNCTION, limits=Limits(memory_mb=256, cpu_s=1, wall_s=250.0)) as sandbox:
        with pytest.raises(SandboxTimeout, match="CPU"):
            await sandbox.run({"do": "spin"}, b"")
        assert (await sandbox.run({}, b"ab"))[1] == [b"ba"]


async def test_wall_time_is_bounded() -> None:
    """A sleeping task is ended by the parent's timeout."""
    async with Sandbox(FUNCTION, limits=Limits(memory_mb=256, wall_s=0.3)) as sandbox:
        with pytest.raises(SandboxTimeout, match=r"0\.3 s"):
            await sandbox.run({"do": "sleep"}, b"")


async def test_a_rejection_keeps_its_code_and_message_and_the_child() -> None:
    """An exception with a code and a message is a result; the child is not replaced."""
    async with Sandbox(FUNCTION, limits=SMALL) as sandbox:
        (pid,) = sandbox.pids()
        with pytest.raises(SandboxRefused) as caught:
            await sandbox.run({"do": "refuse"}, b"")
        assert (caught.value.code, caught.value.message) == ("rejected", "The input is rejected.")
        assert sandbox.pids() == (pid,)


async def test_a_failure_contains_the_childs_traceback() -> None:
    """The error of a bug in the function contains the child's traceback."""
    async with Sandbox(FUNCTION, limits=SMALL) as sandbox:
        with pytest.raises(SandboxFailed, match=r"KeyError: 'a bug'"):
            await sandbox.run({"do": "fail"}, b"")


async def test_a_child_is_replaced_after_its_tasks() -> None:
    """A child runs a fixed number of tasks, which bounds leaks."""
    async with Sandbox(FUNCTION, limits=Limits(memory_mb=256, tasks=2)) as sandbox:
        pids = [(await sandbox.run({}, b""))[0]["pid"] for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_tasks_run_concurrently() -> None:
    """With two workers a slow task does not delay a fast one, and every queued task gets its own result."""
    async with Sandbox(FUNCTION, workers=2, limits=SMALL) as sandbox:
        slow = asyncio.create_task(sandbox.run({"do": "sleep"}, b""))
        answers = await asyncio.gather(*(sandbox.run({}, bytes([n, 0])) for n in range(8)))
        assert not slow.done()
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
    assert [blobs for _, blobs in answers] == [[bytes([0, n])] for n in range(8)]


async def test_cancelling_kills_the_running_child() -> None:
    """A cancelled task leaves no process, and a new child runs the next task."""
    async with Sandbox(FUNCTION, limits=SMALL) as sandbox:
        (pid,) = sandbox.pids()
        task = asyncio.create_task(sandbox.run({"do": "spin"}, b""))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not _alive(pid)
        assert (await sandbox.run({}, b"ab"))[1] == [b"ba"]
        left = sandbox.pids()
    assert not any(_alive(pid) for pid in left)


async def test_closing_ends_a_running_task() -> None:
    """Closing the sandbox ends a running task with SandboxUnavailable, which does not blame the input."""
    async with Sandbox(FUNCTION, limits=SMALL) as sandbox:
        task = asyncio.create_task(sandbox.run({"do": "sleep"}, b""))
        await asyncio.sleep(0.2)
    with pytest.raises(SandboxUnavailable):
        await task
    with pytest.raises(SandboxUnavailable):
        await sandbox.run({}, b"")


async def test_closing_ends_queued_tasks() -> None:
    """Tasks that wait for a child when the sandbox closes raise SandboxUnavailable, and none starts a child."""
    async with Sandbox(FUNCTION, limits=SMALL) as sandbox:
        tasks = [asyncio.create_task(sandbox.run({"do": "sleep"}, b"")) for _ in range(4)]
        await asyncio.sleep(0)  # each task has begun: the first has the child, the others wait for it
    async with asyncio.timeout(20):
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in ended] == [SandboxUnavailable] * 4
    assert not any(_alive(pid) for pid in sandbox.pids())


async def test_a_sandbox_that_could_not_start_can_be_entered_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed start, as under memory pressure, does not close the sandbox for good."""
    sandbox = Sandbox(FUNCTION, limits=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(child_process, "_environment", lambda: {"PYTHONHOME": "/nowhere"})  # Python does not start
        with pytest.raises(SandboxUnavailable):
            await sandbox.__aenter__()
    async with sandbox:
        assert (await sandbox.run({}, b"ab"))[1] == [b"ba"]


async def test_a_child_ignores_stop_signals() -> None:
    """A child that receives SIGINT or SIGTERM finishes its task; only the parent handles them."""
    async with Sandbox(FUNCTION, limits=SMALL) as sandbox:
        (pid,) = sandbox.pids()
        assert os.getpgid(pid) != os.getpgid(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        answer, _ = await sandbox.run({}, b"ab")
    assert answer["pid"] == pid


async def test_a_child_has_no_secrets_and_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has neither the parent's environment nor its open files, and cannot write files."""
    monkeypatch.setenv("DARKROOM_FILES__SECRET_KEY", "x")
    with (tmp_path / "open").open("wb"):
        async with Sandbox(FUNCTION, limits=SMALL) as sandbox:
            seen, _ = await sandbox.run({"do": "look"}, b"")
            with pytest.raises(SandboxFailed, match="PermissionError"):
                await sandbox.run({"do": "write", "path": str(tmp_path / "out")}, b"")
    assert isinstance(seen["env"], list)
    assert not any(str(name).startswith("DARKROOM") for name in seen["env"])
    assert seen["fds"] == 4  # the standard three and the socket


async def test_a_missing_function_fails_at_the_start() -> None:
    """An invalid function path raises SandboxUnavailable with the reason when the sandbox opens."""
    with pytest.raises(SandboxUnavailable, match="no_such_module"):
        async with Sandbox("no_such_module:f", limits=SMALL):
            pass


def test_no_child_outlives_a_killed_parent() -> None:
    """Children, busy or idle, exit when their parent is killed with SIGKILL."""
    program = (
        "import asyncio\n"
        "from streams.sandbox.pool import *\n"
        "async def main():\n"
        f"    async with Sandbox('{FUNCTION}', workers=2, limits=Limits(memory_mb=256)) as sandbox:\n"
        "        task = asyncio.create_task(sandbox.run({'do': 'spin'}, b''))\n"
        "        await asyncio.sleep(0.2)\n"
        "        print(*sandbox.pids(), flush=True)\n"
        "        await task\n"
        "asyncio.run(main())\n"
    )
    here = str(Path(__file__).parent)
    root = str(Path(__file__).parents[4])
    parent = subprocess.Popen(
        (sys.executable, "-c", program),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((here, root))},
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
