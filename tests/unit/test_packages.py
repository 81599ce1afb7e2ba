"""The size of packages, and that tests/unit has the same folders as the code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "streams", "agents", "gateway", "infra", "darkroom")
MAX_MODULES = 16
UNIT = ROOT / "tests" / "unit"


def sizes() -> dict[str, int]:
    """Return the number of modules directly in each package, `__init__` not counted."""
    found: dict[str, int] = {}
    for top in PACKAGES:
        for module in (ROOT / top).rglob("*.py"):
            package = ".".join(module.parent.relative_to(ROOT).parts)
            found[package] = found.get(package, 0) + (module.stem != "__init__")
    return found


def test_no_package_has_more_than_sixteen_modules(record_property: Callable[[str, object], None]) -> None:
    """The largest package, named with its size, has at most 16 modules."""
    counted = sizes()
    largest = max(counted, key=lambda package: (counted[package], package))
    report = f"largest package: {largest}, {counted[largest]} modules"
    record_property("largest_package", largest)
    record_property("modules", counted[largest])
    assert counted[largest] <= MAX_MODULES, f"{report}; the limit is {MAX_MODULES}"


def test_unit_tests_mirror_the_packages() -> None:
    """Every folder of tests/unit that has tests is a package of the code under the same path."""
    folders = {file.parent.relative_to(UNIT) for file in UNIT.rglob("test_*.py")} - {Path()}
    missing = sorted(str(folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file())
    assert not missing, f"tests/unit has folders without a package: {', '.join(missing)}"
