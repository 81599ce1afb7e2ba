"""Finds a model's weights file and verifies that it is the expected one.

Search order: the operator's folder (`models.dir`), installed packages, the cache, a download from the official source.
A file of the manifest must have the manifest's sha256. An operator's own file is accepted when a setting names it; its
hash is recorded with every result. Where a stage allows it (`own_patterns`), a file of the operator's folder that
matches a pattern is used without being named: by pattern, then by name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import httpx

from streams.settings import ModelsSettings

Progress = Callable[[str, int, int | None], None]  # model name, bytes so far, total bytes if known
_CONNECT_S = 3.0  # without network the search must fail at once, not after minutes
_READ_S = 20.0
_CHUNK = 1 << 20

# Files of an operator's folder used without being named. Weights that torch loads come before fixed graphs.
OWN_DETECTORS = ("*yolo*.pt", "*yolo*.onnx")


class Unavailable(Exception):
    """No weights are available. The message, for operators, lists the searched places and the failures."""

    def __init__(self, message: str, *, file: str = "") -> None:
        super().__init__(message)
        self.file = file  # name of the file that is missing or wrong, fit for clients; empty for other causes


class Mismatch(Unavailable):
    """A file of the right name has another hash than the manifest's."""


class WrongAnswer(ValueError):
    """A model's answer to its golden image is implausible for its weights."""


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of the manifest."""

    name: str
    stage: str
    file: str
    sha256: str
    licence: str
    source: str
    package: str | None = None


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file and its sha256. `own`: an operator's, not the manifest's."""

    name: str
    path: Path
    sha256: str
    own: bool = False


class ModelState(StrEnum):
    """Whether a model of the manifest is usable on this machine without a download."""

    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"
    MISMATCH = "mismatch"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of `darkroom models`."""

    name: str
    stage: str
    state: ModelState
    where: Path | None
    sha256: str | None  # of the file that was found
    licence: str
    reason: str = ""


@cache
def manifest() -> tuple[Model, ...]:
    """Return all models of the manifest."""
    text = Path(__file__).with_name("manifest.toml").read_text(encoding="utf-8")
    return tuple(Model(**entry) for entry in tomllib.loads(text)["model"])


def model_named(name: str) -> Model:
    """Return one model of the manifest. Raises KeyError for an unknown name."""
    for model in manifest():
        if model.name == name:
            return model
    raise KeyError(name)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(
    name: str,
    settings: ModelsSettings,
    *,
    own: str | None = None,
    own_patterns: Sequence[str] = (),
    progress: Progress | None = None,
) -> Weights:
    """Return a model's weights, downloaded if allowed and found nowhere else.

    `own` is the file name of an operator's own weights in `settings.dir`. Raises Unavailable, or Mismatch when a file
    of the right name has the wrong hash and no other place has the right one.
    """
    if own is not None:
        return _named_by_operator(own, settings)
    model = model_named(name)
    found = _search(model, settings)
    if isinstance(found, Weights):
        return found
    for path in _own_files(settings, own_patterns):
        return Weights(path.stem, path, sha256_of(path), own=True)
    if not settings.download:
        raise type(found)(f"{found}; downloads are off (DARKROOM_MODELS__DOWNLOAD)", file=model.file)
    try:
        return _download(model, settings.cache, progress)
    except Unavailable as error:
        raise type(found)(f"{found}; {error}", file=model.file) from error


def status(settings: ModelsSettings) -> list[ModelStatus]:
    """Return whether each model of the manifest is usable here. Downloads nothing, hashes the files it finds."""
    statuses: list[ModelStatus] = []
    for model in manifest():
        found = _search(model, settings)
        if isinstance(found, Weights):
            state, where, digest, reason = ModelState.AVAILABLE, found.path, found.sha256, ""
        elif isinstance(found, Mismatch):
            where = next(path for _, path in _places(model, settings) if path.is_file())
            state, digest, reason = ModelState.MISMATCH, sha256_of(where), str(found)
        else:
            state, where, digest, reason = ModelState.UNAVAILABLE, None, None, str(found)
        statuses.append(ModelStatus(model.name, model.stage, state, where, digest, model.licence, reason))
    return statuses


def fetch(
    settings: ModelsSettings, names: Iterable[str] = (), *, progress: Progress | None = None
) -> list[ModelStatus]:
    """Download and verify the named models (all, if none is named) that are missing; return their status.

    Ignores `settings.download`. Raises KeyError for a name that is not in the manifest.
    """
    wanted = [model_named(name) for name in names] or list(manifest())
    failures: dict[str, str] = {}
    for model in wanted:
        if isinstance(_search(model, settings), Weights):
            continue
        try:
            _download(model, settings.cache, progress)
        except Unavailable as error:
            failures[model.name] = str(error)
    chosen = {model.name for model in wanted}
    return [
        ModelStatus(s.name, s.stage, s.state, s.where, s.sha256, s.licence, failures.get(s.name, s.reason))
        for s in status(settings)
        if s.name in chosen
    ]


def _named_by_operator(own: str, settings: ModelsSettings) -> Weights:
    if settings.dir is None:
        raise Unavailable(f"weights {own!r} need DARKROOM_MODELS__DIR, which is not set")
    folder = settings.dir.resolve()
    path = (folder / own).resolve()
    if not path.is_relative_to(folder):
        raise Unavailable(f"weights {own!r} are outside models.dir")
    if not path.is_file():
        raise Unavailable(f"there is no {own} in models.dir")
    return Weights(path.stem, path, sha256_of(path), own=True)


def _places(model: Model, settings: ModelsSettings) -> Iterator[tuple[str, Path]]:
    """Yield the name and path of each place to search. Only the names are shown to clients."""
    if settings.dir is not None:
        yield "models.dir", settings.dir / model.file
    if model.package is not None:
        spec = importlib.util.find_spec(model.package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            yield f"package {model.package}", Path(folder) / "models" / model.file
            yield f"package {model.package}", Path(folder) / model.file
    yield "models.cache", settings.cache / model.file


def _search(model: Model, settings: ModelsSettings) -> Weights | Unavailable:
    wrong: list[str] = []
    searched: list[str] = []
    for place, path in _places(model, settings):
        searched.append(place)
        if path.is_file():
            digest = sha256_of(path)
            if digest == model.sha256:
                return Weights(model.name, path, digest)
            wrong.append(f"{model.file} in {place} has sha256 {digest[:12]}…, not {model.sha256[:12]}…")
    if wrong:
        return Mismatch("; ".join(wrong), file=model.file)
    return Unavailable(f"no {model.file} in {', '.join(dict.fromkeys(searched))}", file=model.file)


def _own_files(settings: ModelsSettings, patterns: Sequence[str]) -> Iterator[Path]:
    if settings.dir is None or not settings.dir.is_dir():
        return
    for pattern in patterns:
        yield from sorted(path for path in settings.dir.glob(pattern) if path.is_file())


def _download(model: Model, folder: Path, progress: Progress | None) -> Weights:
    """Download the file into the cache, verified and atomically."""
    target = folder / model.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            got = _stream(model, Path(scratch), progress)
            digest = sha256_of(got)
            if digest != model.sha256:
                raise Mismatch(f"the download from {model.source} has sha256 {digest[:12]}…, not {model.sha256[:12]}…")
            os.replace(got, target)  # noqa: PTH105 - Path.replace is the same; os.replace says atomic
    except (httpx.HTTPError, OSError, zipfile.BadZipFile, KeyError) as error:
        raise Unavailable(f"download from {model.source} failed: {str(error) or type(error).__name__}") from error
    return Weights(model.name, target, digest)


def _stream(model: Model, scratch: Path, progress: Progress | None) -> Path:
    got = scratch / "body"
    timeout = httpx.Timeout(_READ_S, connect=_CONNECT_S)
    with httpx.stream("GET", model.source, follow_redirects=True, timeout=timeout) as answer:
        answer.raise_for_status()
        length = answer.headers.get("content-length")
        done = 0
        with got.open("wb") as file:
            for chunk in answer.iter_bytes(_CHUNK):
                done += file.write(chunk)
                if progress is not None:
                    progress(model.name, done, int(length) if length else None)
    if model.source.endswith(".zip"):
        with zipfile.ZipFile(got) as archive:
            return Path(archive.extract(model.file, scratch))
    return got
