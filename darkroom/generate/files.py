"""Generated files on disk: which are outdated, and writing them. Shared by the generators."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path


def outdated(root: Path, wanted: Mapping[str, str], obsolete: Iterable[str]) -> list[str]:
    """Return the paths below a root that are missing or differ, and the obsolete ones that no generator writes."""
    wrong = [path for path, text in wanted.items() if not _is_current(root / path, text)]
    return sorted([*wrong, *(path for path in obsolete if path not in wanted)])


def main(
    arguments: Sequence[str] | None,
    *,
    command: str,
    description: str | None,
    root: Path,
    prefix: str,
    generate: Callable[[Path], Mapping[str, str]],
    obsolete: Callable[[Path], Iterable[str]],
) -> int:
    """Write the generated files, or with --check list the outdated ones; return the exit code.

    `generate` returns path below the root -> text, `obsolete` the files on disk that a generator once wrote. `prefix`
    precedes paths in messages.
    """
    parser = argparse.ArgumentParser(prog=command, description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and list outdated files")
    parser.add_argument("--root", type=Path, default=root, help="the folder the files are in")
    chosen = parser.parse_args(arguments)
    wanted = generate(chosen.root)
    wrong = outdated(chosen.root, wanted, obsolete(chosen.root))
    if chosen.check:
        for path in wrong:
            print(f"{prefix}{path} is outdated: run `{command}`", file=sys.stderr)
        return 1 if wrong else 0
    for path in wrong:
        file = chosen.root / path
        if path in wanted:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(wanted[path].encode())
        else:
            file.unlink()
        print(f"{prefix}{path}")
    return 0


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
