"""Installs the programs that Darkroom does not ship: Apache Kafka's jars and MinIO, cached outside the checkout."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.local.process import Child

KAFKA_VERSION = "4.1.0"
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
JAVA_AT_LEAST = 17  # Kafka 4 brokers need 17: kafka.apache.org/41/operations/java-version
GO_AT_LEAST = (1, 24)

Say = Callable[[str], None]

# log4j-slf4j-impl is the binding of Kafka's distribution; the published pom includes none.
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>darkroom</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId>
      <version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>2.24.3</version></dependency>
  </dependencies>
</project>
"""


class MissingTool(RuntimeError):
    """A required program is not installed; the message names it and how to install it."""


class InstallFailed(RuntimeError):
    """A download or build failed; the message ends with the tool's output."""


def cache_dir() -> Path:
    """Return the folder of downloads and builds: DARKROOM_CACHE, or ~/.cache/darkroom."""
    return Path(os.environ.get("DARKROOM_CACHE") or Path.home() / ".cache" / "darkroom")


def say_to_stderr(line: str) -> None:
    """Write a progress line to stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def java() -> str:
    """Return the path of Java 17 or later, from JAVA_HOME or else PATH. Raises MissingTool."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    program = _found(found or shutil.which("java"), f"Java {JAVA_AT_LEAST} or later", "openjdk-17-jre-headless")
    output = _output([program, "-version"])
    version = re.search(r'version "(?:1\.)?(\d+)', output)
    if version is None or int(version.group(1)) < JAVA_AT_LEAST:
        first_line = output.strip().partition("\n")[0]
        raise MissingTool(
            f"Apache Kafka {KAFKA_VERSION} needs Java {JAVA_AT_LEAST} or later; {program} is {first_line}. "
            "Install it (Debian or Ubuntu: apt-get install openjdk-17-jre-headless) or set JAVA_HOME."
        )
    return program


def kafka_jars(say: Say = say_to_stderr) -> Path:
    """Return the folder of Kafka's jars, downloaded with Maven on first use (54 MB, checksums verified)."""
    folder = cache_dir() / f"kafka-{KAFKA_VERSION}"
    if folder.is_dir():
        return folder
    with _install_lock("kafka"):
        if folder.is_dir():
            return folder
        maven = _found(shutil.which("mvn"), "Maven (mvn)", "maven")
        say(f"Downloading Apache Kafka {KAFKA_VERSION} (54 MB, once) to {folder}")
        with _staging_folder(folder) as work:
            (work / "pom.xml").write_text(_POM)
            jars = work / "jars"
            _run(
                [maven, "-B", "-q", "-C", "-f", str(work / "pom.xml"), "dependency:copy-dependencies",
                 "-DincludeScope=runtime", f"-DoutputDirectory={jars}"],
                f"Maven could not download Apache Kafka {KAFKA_VERSION}", work / "log", say,
            )  # fmt: skip
            jars.rename(folder)
        say("Apache Kafka is installed.")
    return folder


def minio_binary(say: Say = say_to_stderr) -> Path:
    """Return the path of the MinIO server, built with Go on first use (minutes)."""
    binary = cache_dir() / "bin" / "minio"
    if binary.is_file():
        return binary
    with _install_lock("minio"):
        if binary.is_file():
            return binary
        go = _go()
        say(f"Building MinIO {MINIO_VERSION} (once, a few minutes) to {binary}")
        with _staging_folder(binary) as work:
            _run(
                [go, "install", f"github.com/minio/minio@{MINIO_VERSION}"],
                f"Go could not build MinIO {MINIO_VERSION}", work / "log", say,
                env={**os.environ, "GOBIN": str(work), "GOFLAGS": "", "CGO_ENABLED": "0"},
            )  # fmt: skip
            (work / "minio").rename(binary)
        say("MinIO is installed.")
    return binary


def _go() -> str:
    needed = ".".join(map(str, GO_AT_LEAST))
    requirement = (
        f"Building MinIO needs Go {needed} or later. Install it from https://go.dev/dl "
        "(Debian or Ubuntu: apt-get install golang-go, if recent enough)"
    )
    program = shutil.which("go")
    if program is None:
        raise MissingTool(f"{requirement}; `go` is not on PATH.")
    output = _output([program, "version"])
    version = re.search(r"go(\d+)\.(\d+)", output)
    if version is None or (int(version.group(1)), int(version.group(2))) < GO_AT_LEAST:
        raise MissingTool(f"{requirement}; {program} is {output.strip()}.")
    return program


def _found(program: str | None, what: str, debian: str) -> str:
    if program is None:
        raise MissingTool(
            f"{what} is missing; Apache Kafka {KAFKA_VERSION} needs it. "
            f"Install it (Debian or Ubuntu: apt-get install {debian}), "
            "or set DARKROOM_KAFKA__BOOTSTRAP to a running Kafka."
        )
    return program


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _run(command: list[str], failure: str, log: Path, say: Say, env: dict[str, str] | None = None) -> None:
    child = Child(command, log_file=log, env=env)
    try:
        while True:
            try:
                code = child.wait_blocking(30.0)
                break
            except TimeoutError:
                say("  … still running")
    finally:
        child.kill()
    if code != 0:
        raise InstallFailed(f"{failure}:\n{log.read_text(errors='replace')[-2000:]}")


@contextlib.contextmanager
def _install_lock(name: str) -> Iterator[None]:
    """A file lock against concurrent installations of the same program."""
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _staging_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the target's file system, for an atomic rename as the last step.

    The caller has the install lock, so an existing folder was left by a killed process and is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        yield Path(work)
