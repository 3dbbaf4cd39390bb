"""What is written down: rotated, one process a file, and a full disk costs lines only."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import logs


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The handlers and levels that there were."""
    root = logging.getLogger()
    handlers, strict = list(root.handlers), logging.raiseExceptions
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        root.addHandler(handler)
    logging.raiseExceptions = strict
    logging.getLogger("launcher").setLevel(logging.NOTSET)


def test_old_lines_make_room_for_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BYTES", 2000)
    logs.keep(tmp_path, "zygote-0")
    logs.keep(tmp_path, "rank-0")  # as after a fork
    for number in range(1000):
        logging.getLogger("launcher.x").info("line %d", number)
    files = sorted((tmp_path / "logs").iterdir())
    assert [file.name for file in files] == [
        "rank-0.log",
        *(f"rank-0.log.{n + 1}" for n in range(logs.KEPT)),
        "zygote-0.log",
    ]
    assert all(file.stat().st_size <= 2000 for file in files)
    assert files[0].read_text().endswith("- line 999\n")
    assert files[-1].read_text() == ""


def test_the_terminal_shows_our_warnings_and_everybodys_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.keep(tmp_path, "rank-0")
    monkeypatch.setattr(logging.getLogger().handlers[0], "stream", FullDisk())
    with logs.about("r-1"):
        logging.getLogger("launcher.x").info("not this")
        logging.getLogger("launcher.x").warning("this")
        logging.getLogger("library").warning("nor this")
        logging.getLogger("library").error("but this")
    assert capsys.readouterr().err == "DistriFusion Live: this\nDistriFusion Live: but this\n"
