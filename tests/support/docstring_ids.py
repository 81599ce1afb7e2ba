"""Each test says one sentence of behaviour, its docstring: printed as the test ends; a test without one is refused."""

from __future__ import annotations

import pytest

_MARKS = {"passed": "✓", "failed": "✗", "skipped": "–"}


def _sentence(item: pytest.Item) -> str:
    doc = getattr(getattr(item, "function", None), "__doc__", None) or ""
    return " ".join(doc.split())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a run with a test that does not say what it shows."""
    silent = [item.nodeid for item in items if not _sentence(item)]
    if silent:
        raise pytest.UsageError("tests without a sentence of behaviour:\n  " + "\n  ".join(silent))
    for item in items:
        item.user_properties.append(("sentence", _sentence(item)))


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Print no dots: the sentence says it."""
    if report.when == "call" and report.outcome in ("passed", "failed"):
        return report.outcome, "", report.outcome.upper()
    return None


class Speaker:
    """Prints the sentences, one line each, under their file's name."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._file = ""

    def pytest_sessionstart(self) -> None:
        """Keep pytest from printing file names of its own."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the sentence of a test that has run, or could not."""
        if report.when != "call" and not report.failed and not report.skipped:
            return
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None:
            return
        file = report.nodeid.partition("::")[0]
        if file != self._file:
            self._file = file
            reporter.write_line(f"\n{file}")
        _, bracket, case = report.nodeid.partition("[")
        sentence = dict(report.user_properties).get("sentence", report.nodeid)
        took = f"  ({report.duration:.1f} s)" if report.duration >= 1 else ""
        reporter.write_line(f"  {_MARKS[report.outcome]} {sentence}{' [' + case if bracket else ''}{took}")


def pytest_configure(config: pytest.Config) -> None:
    """Speak, unless asked for pytest's own verbose lines or to be quiet."""
    if config.option.verbose == 0 and not config.option.collectonly:
        config.pluginmanager.register(Speaker(config))
