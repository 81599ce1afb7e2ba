"""Prints each test's docstring, one sentence of behaviour, as its result; a test without one fails collection."""

from __future__ import annotations

import re

import pytest

_MARKS = {"passed": "✓", "failed": "✗", "skipped": "–"}


def _sentence(item: pytest.Item) -> str:
    doc = getattr(getattr(item, "function", None), "__doc__", None) or ""
    return " ".join(doc.split())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fail collection if a test has no docstring; attach the sentence to each test."""
    undocumented = [item.nodeid for item in items if not _sentence(item)]
    if undocumented:
        raise pytest.UsageError("tests without a docstring:\n  " + "\n  ".join(undocumented))
    for item in items:
        item.user_properties.append(("sentence", _sentence(item)))


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Suppress pytest's progress dots: the sentences replace them."""
    if report.when == "call" and report.outcome in ("passed", "failed"):
        return report.outcome, "", report.outcome.upper()
    return None


class SentenceReporter:
    """Prints one sentence per test, grouped by file."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._file = ""

    def pytest_sessionstart(self) -> None:
        """Suppress pytest's own file names."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the sentence of a test that ran, was skipped or failed in its setup."""
        if report.when != "call" and not report.failed and not report.skipped:
            return
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None:
            return
        file = report.nodeid.partition("::")[0]
        # Without the group, which pytest-xdist appends. A parameter may contain an @ too.
        test = re.sub(r"@[\w./]+$", "", report.nodeid)
        if file != self._file:
            self._file = file
            reporter.write_line(f"\n{file}")
        _, bracket, case = test.partition("[")
        sentence = dict(report.user_properties).get("sentence", test)
        duration = f"  ({report.duration:.1f} s)" if report.duration >= 1 else ""
        reporter.write_line(f"  {_MARKS[report.outcome]} {sentence}{' [' + case if bracket else ''}{duration}")


def pytest_configure(config: pytest.Config) -> None:
    """Register the reporter, except with -v, -q or --collect-only."""
    if config.option.verbose == 0 and not config.option.collectonly:
        config.pluginmanager.register(SentenceReporter(config))
