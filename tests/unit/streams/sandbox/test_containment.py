"""What a child of the sandbox may do, tried by each attack in `attacks` in a child that runs as the sanitizer's."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from pydantic import JsonValue
from structlog.testing import capture_logs

from agents.core.decode import Refusal
from agents.core.sanitize import sanitize_in_child
from agents.stages.sanitizer import SanitizerSettings
from streams.sandbox import landlock
from streams.sandbox.child_process import Limits
from streams.sandbox.errors import (
    SandboxNotContained,
    SandboxRefused,
    SandboxUnavailable,
)
from streams.sandbox.pool import Sandbox
from tests.unit.streams.sandbox.attacks import ATTACKS, PERMITTED

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one child for all attacks

CONFINED = "tests.unit.streams.sandbox.attacks:attack"
WITHOUT_LANDLOCK = "tests.unit.streams.sandbox.lacking:without_landlock"
WITHOUT_SECCOMP = "tests.unit.streams.sandbox.lacking:without_seccomp"
UNCONFINED = "tests.unit.streams.sandbox.lacking:without_anything"
SANITIZER = SanitizerSettings()
LIMITS = Limits(memory_mb=SANITIZER.decode_memory_mb)
IMAGE: dict[str, JsonValue] = SANITIZER.model_dump(
    include={"max_bytes", "max_side", "max_pixels", "max_frames", "keep_capture_details", "pdf_dpi"}
)
_NOWHERE: dict[str, JsonValue] = {"parent": os.getpid(), "file": "/nowhere/file", "port": 1, "unix": "", "abstract": ""}
SECRET = b"another owner's picture"
# What succeeds in a child that is not confined, for any user and without harm to the process of the tests.
POSSIBLE_OTHERWISE = (
    "read the parent's environment",
    "read the parent's command line",
    "list processes",
    "read a foreign file",
    "list a foreign folder",
    "read the system's users",
    "list the project's root",
    "watch a foreign folder",
    "change a file's times",
    "change a file's mode",
    "write a file",
    "create a file",
    "make a folder",
    "link a file",
    "truncate a file",
    "truncate a file by opening it",
    "connect by TCP",
    "send by UDP",
    "connect by a Unix socket",
    "connect by an abstract Unix socket",
    "listen",
    "start a program",
    "start a process",
    "start many processes",
    "leave a grandchild",
    "map 3 GB of shared memory",
    "map 3 GB of stack",
    "signal the parent",
    "signal a thread of the parent",
    "signal the parent by a descriptor",
    "signal the parent by a socket",
    "outlive the parent",
    "become dumpable",
    "rename a file",
)
# Refused by Landlock as well, of which a kernel may have an older ABI: attack -> ABI.
BY_LANDLOCK_ALONE = {
    "read the parent's memory by a system call": 1,
    "write a file": 1,
    "remove a file": 1,
    "make a folder": 1,
    "truncate a file": 3,
    "connect by TCP": 4,
    "connect by an abstract Unix socket": 6,
    "signal the parent": 6,
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sandbox() -> AsyncIterator[Sandbox]:
    """Return a sandbox with one child, which has imported the sanitizer's decoder."""
    async with Sandbox(CONFINED, limits=LIMITS, require=True) as sandbox:
        yield sandbox


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def unconfined() -> AsyncIterator[Sandbox]:
    """Return a sandbox on a system that lacks every part."""
    async with Sandbox(UNCONFINED, limits=LIMITS) as sandbox:
        yield sandbox


@pytest.fixture
def target(tmp_path: Path) -> Iterator[dict[str, JsonValue]]:
    """Return the arguments of an attack: a file, listening sockets and this process."""
    file, path, abstract = tmp_path / "secret", tmp_path / "socket", f"darkroom-{os.getpid()}"
    file.write_bytes(SECRET)
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as nameless,
    ):
        for listener, address in ((unix, str(path)), (nameless, f"\0{abstract}")):
            listener.bind(address)
            listener.listen()
        yield {
            "parent": os.getpid(),
            "file": str(file),
            "port": tcp.getsockname()[1],
            "unix": str(path),
            "abstract": abstract,
        }


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_is_refused(name: str, sandbox: Sandbox, target: dict[str, JsonValue]) -> None:
    """The attack is refused as not permitted, and changes no file."""
    file = Path(str(target["file"]))
    before = file.stat()
    answer, _ = await sandbox.run({"attack": name, **target}, b"")
    assert "gained" not in answer
    assert answer["refused"] in {"EPERM", "EACCES", "ENOSYS", "ENOMEM"}, answer
    assert file.read_bytes() == SECRET
    assert (file.stat().st_mode, file.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["secret", "socket"]


@pytest.mark.parametrize("name", POSSIBLE_OTHERWISE)
async def test_an_attack_succeeds_without_the_confinement(
    name: str, unconfined: Sandbox, target: dict[str, JsonValue]
) -> None:
    """The attacks are real: a child that is not confined gains from each."""
    answer, _ = await unconfined.run({"attack": name, **target}, b"")
    assert "gained" in answer, answer


async def test_landlock_alone_refuses_what_it_covers(target: dict[str, JsonValue]) -> None:
    """The two layers overlap: on a system without seccomp, Landlock refuses what this kernel's ABI covers."""
    attacks = [name for name, since in BY_LANDLOCK_ALONE.items() if since <= landlock.abi()]
    async with Sandbox(WITHOUT_SECCOMP, limits=LIMITS) as sandbox:
        assert len(sandbox.missing) == 1
        answers = [(await sandbox.run({"attack": name, **target}, b""))[0] for name in attacks]
    assert [name for name, answer in zip(attacks, answers, strict=True) if "gained" in answer] == []


async def test_a_confined_child_decodes_as_this_process_does(sandbox: Sandbox, images_dir: Path) -> None:
    """The smallest two images of each type give the same properties and master in the child, or the same rejection."""
    files = [path for folder in ("formats", "kinds", "exif") for path in (images_dir / folder).iterdir()]
    types: dict[str, list[Path]] = {}
    for path in sorted(filter(Path.is_file, files), key=lambda path: path.stat().st_size):
        types.setdefault(path.suffix, []).append(path)
    assert types.keys() >= {".avif", ".bmp", ".gif", ".heif", ".jpg", ".png", ".tiff", ".webp"}
    for path in (path for paths in types.values() for path in paths[:2]):
        data = path.read_bytes()
        try:
            expected = sanitize_in_child(IMAGE, data)
        except Refusal as refusal:
            with pytest.raises(SandboxRefused) as refused:
                await sandbox.run(IMAGE, data)
            assert refused.value.code == str(refusal.code), path.name
        else:
            assert await sandbox.run(IMAGE, data) == expected, path.name


async def test_what_a_decoder_needs_stays_permitted(sandbox: Sandbox) -> None:
    """Threads, private memory, random numbers, imports and signals to itself work in a confined child."""
    answer, _ = await sandbox.run({"attack": PERMITTED, **_NOWHERE}, b"")
    assert answer == {"gained": "'everything'"}


async def test_missing_parts_are_named_and_logged_once() -> None:
    """On a system without Landlock the sandbox works; it names the part and logs it once for all children."""
    with capture_logs() as logs:
        async with Sandbox(WITHOUT_LANDLOCK, workers=2, limits=LIMITS) as sandbox:
            missing = sandbox.missing
            answer, _ = await sandbox.run({"attack": "start a process", **_NOWHERE}, b"")
    assert missing == ("Landlock (Operation not supported)",)
    assert [entry["missing"] for entry in logs if entry["log_level"] == "warning"] == [missing]
    assert answer == {"refused": "EPERM"}  # the other parts apply


async def test_a_required_part_that_is_missing_fails_the_start() -> None:
    """With `require` the sandbox does not open, and the error names the part and the setting."""
    sandbox = Sandbox(WITHOUT_LANDLOCK, limits=LIMITS, require=True)
    with pytest.raises(SandboxNotContained, match=r"missing: Landlock .*DARKROOM_SANDBOX__REQUIRE"):
        await sandbox.__aenter__()
    assert not sandbox.pids()
    with pytest.raises(SandboxUnavailable):
        await sandbox.run({}, b"")


async def test_no_task_runs_in_a_child_that_lacks_a_required_part() -> None:
    """A child that was not awaited at the start is checked before its first task."""
    sandbox = Sandbox(WITHOUT_LANDLOCK, limits=LIMITS, require=True)
    sandbox._idle.put_nowait(None)
    with pytest.raises(SandboxNotContained):
        await sandbox.run({"attack": "read a foreign file", **_NOWHERE}, b"")
    sandbox.close()
