"""What every test shares: with --no-skips, or with CI set, a skipped test counts as a failed one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
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


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    # An expected failure (xfail) is reported as skipped too, but has run.
    if config.getoption("--no-skips") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, and --no-skips does not allow that: {reason}"


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
