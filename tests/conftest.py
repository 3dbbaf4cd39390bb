"""What every test shares: with --no-skips, or with CI set, a skipped test counts as a failed one; and what tests have
measured is printed at the end.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Oracles are small: with a thread a core they would wait for each other, and for the ranks beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips",
        action="store_true",
        default=bool(os.environ.get("CI")),
        help="a skipped test fails (default where the environment sets CI)",
    )


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder whose name leaves room for the addresses of sockets, as that of tmp_path does not."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Keeps a line for the end of the run: a figure that is worth seeing and no reason to fail."""
    return lambda line: record_property("measured", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    lines = [line for one in reports if one.when == "call" for name, line in one.user_properties if name == "measured"]
    if lines:
        terminalreporter.section("measured")
        terminalreporter.line("\n".join(lines))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of real GPUs are left out where there is none; a skipped one would count as failed."""
    needy = [item for item in items if item.get_closest_marker("cuda")]
    if needy:
        import torch

        if not torch.cuda.is_available():
            items[:] = [item for item in items if item not in needy]
            config.hook.pytest_deselected(items=needy)


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    # An expected failure (xfail) is reported as skipped too, but has run.
    if config.getoption("--no-skips") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, and --no-skips does not allow that: {reason}"


def pytest_collection_finish() -> None:
    if gang := sys.modules.get("tests.support.gang"):  # somebody is going to need ranks
        gang.prepare()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    _fail_if_skipped(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _fail_if_skipped(report, collector.config)
    return report
