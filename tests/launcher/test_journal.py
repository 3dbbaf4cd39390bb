"""The journal: what was accepted is never lost, what ended ends once, and damage to the file costs nothing else."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import journal as journals
from launcher.job import Job
from launcher.journal import Journal, data_folder
from launcher.schema import as_parameters


def job(req: str, visitor: str = "v") -> Job:
    request = GenerationRequest(prompt=f"prompt of {req}", steps=3, seed=1, height=64, width=64)
    return Job(id=req, request=as_parameters(request), config=as_parameters(DistriConfig()), visitor=visitor)


def done(journal: Journal, one: Job) -> None:
    one.pictures, one.report = (f"/x/{one.id}.png",), {"seconds": {"total": 1.5}}
    one.end("done", "Done")
    journal.finished(one)


def reopened(journal: Journal) -> Journal:
    journal.close()
    return Journal(journal.folder)


def test_history_survives_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for req in ("a", "b", "c"):
        journal.accepted(job(req, visitor="w" if req == "b" else "v"))
        journal.tried(job(req))
    done(journal, journal_job(journal, "a"))
    done(journal, journal_job(journal, "b"))
    before = journal.history()
    again = reopened(journal)
    assert again.history() == before
    assert [record.id for record in before] == ["b", "a"]
    assert [record.id for record in again.history(visitor="w")] == ["b"]
    assert [record.id for record in again.history(limit=1)] == ["b"]
    assert [(one.id, one.attempts) for one in again.recover()] == [("c", 1)]


def test_why_a_picture_is_made_as_it_is_survives_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    one = job("a")
    one.plan = {"sentence": "Auto: because.", "candidates": []}
    journal.accepted(one)
    journal.accepted(job("b"))
    assert [each.plan for each in reopened(journal).recover()] == [one.plan, None]


def journal_job(journal: Journal, req: str) -> Job:
    return next(one for one in journal.recover() if one.id == req)


def test_a_torn_last_line_is_ignored_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.accepted(job("a"))
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"entry":"accepted","id":"b","requ')
    again = reopened(journal)
    assert [one.id for one in again.recover()] == ["a"]
    again.accepted(job("c"))
    assert [one.id for one in reopened(again).recover()] == ["a", "c"]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\x00",
        b"[]",
        b"{}",
        b'{"entry":"accepted","id":"z"}',
        b'{"entry":"accepted","id":"z","request":[],"config":{},"visitor":"","comparison":""}',
        b'{"entry":3,"id":[]}',
    ],
)
def test_lines_that_make_no_sense_are_skipped(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(line + b"\n")
    journal = Journal(tmp_path)
    journal.accepted(job("a"))
    assert [one.id for one in reopened(journal).recover()] == ["a"]


def test_an_end_that_makes_no_sense_does_not_lose_the_request(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.accepted(job("a"))
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"entry":"finished","id":"a"}\n')
    assert [one.id for one in reopened(journal).recover()] == ["a"]


def test_what_could_not_be_written_is_not_found_by_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.accepted(job("a"))

    def fail(_: int) -> None:
        raise OSError("input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="input/output"):
            journal.accepted(job("b"))
    journal.accepted(job("c"))
    assert [one.id for one in reopened(journal).recover()] == ["a", "c"]


def test_the_second_end_of_a_request_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    one = job("a")
    journal.accepted(one)
    done(journal, one)
    one.end("failed", "later")
    journal.finished(one)
    for each in (journal, reopened(journal)):
        assert [(record.state, record.message) for record in each.history()] == [("done", "Done")]
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["entry"] for line in lines] == ["accepted", "finished"]


def test_what_killed_the_group_twice_is_not_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.accepted(job("a"))
    journal.tried(job("a"))
    journal.tried(job("a"))
    again = reopened(journal)
    assert again.recover() == []
    assert again.history()[0].state == "failed"
    assert "twice" in again.history()[0].message


def test_what_was_stopped_is_not_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.accepted(job("a"))
    journal.tried(job("a"))
    journal.stopped(job("a"))
    again = reopened(journal)
    assert again.recover() == []
    assert again.history()[0].state == "cancelled"


def test_an_unusable_folder_refuses_and_recovers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file")
    assert journal.recover() == []
    with pytest.raises(OSError):
        journal.accepted(job("a"))
    (tmp_path / "file").unlink()
    journal.accepted(job("a"))
    assert [one.id for one in reopened(journal).recover()] == ["a"]


def test_a_read_only_folder_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.accepted(job("a"))
    monkeypatch.setattr("os.write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        journal.accepted(job("b"))
    monkeypatch.undo()
    assert [one.id for one in journal.recover()] == ["a"]
    journal.accepted(job("c"))
    assert [one.id for one in reopened(journal).recover()] == ["a", "c"]


def fill(journal: Journal, first: int, last: int) -> None:
    for number in range(first, last):
        one = job(f"r-{number}")
        journal.accepted(one)
        journal.tried(one)
        done(journal, one)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals that remember three requests, and are rewritten early."""
    monkeypatch.setattr(journals, "REMEMBERED", 3)
    monkeypatch.setattr(journals, "LEAN_BYTES", 8000)


@pytest.mark.usefixtures("small")
def test_a_journal_does_not_grow_for_ever_and_loses_nothing_that_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for req in ("open", "stopped"):
        journal.accepted(job(req))
        journal.tried(job(req))
    journal.stopped(job("stopped"))
    fill(journal, 0, 100)
    path = tmp_path / "journal.jsonl"
    assert path.stat().st_size < 3 * 8000
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="DISTRI_DATA"):  # the lock went with it
        Journal(tmp_path).accepted(job("other"))
    assert [record.id for record in journal.history()] == ["r-99", "r-98", "r-97"]
    again = reopened(journal)
    assert again.history() == journal.history()
    assert [(one.id, one.attempts) for one in again.recover()] == [("open", 1)]
    assert again.record("stopped").state == "cancelled"
    fill(again, 100, 101)
    assert [record.id for record in reopened(again).history()] == ["r-100", "stopped", "r-99"]
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]


@pytest.mark.usefixtures("small")
def test_a_journal_that_cannot_be_rewritten_goes_on_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        fill(journal, 0, 40)
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 120
    assert [record.id for record in reopened(journal).history()] == ["r-39", "r-38", "r-37"]
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]


def test_what_a_killed_rewrite_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".journal.jsonl.part-x").write_text("half")
    Journal(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]


def test_an_attempt_that_was_ended_on_purpose_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.accepted(job("a"))
    journal.accepted(job("b"))
    for _ in range(4):
        journal.tried(job("a"))
        journal = reopened(journal)
        journal.spare()
    assert [(one.id, one.attempts) for one in reopened(journal).recover()] == [("a", 0), ("b", 0)]


def test_an_attempt_that_was_lost_before_the_end_does_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.accepted(job("a"))
    journal.tried(job("a"))
    journal = reopened(journal)
    assert [one.attempts for one in journal.recover()] == [1]  # the next group knows it, and waits for its ranks
    journal = reopened(journal)
    journal.spare()
    assert [one.attempts for one in reopened(journal).recover()] == [1]


def test_a_picture_to_start_from_stays_until_the_end_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    Image.new("RGB", (8, 8)).save(file := io.BytesIO(), "PNG")
    with journal.inputs.kept(base64.b64encode(file.getvalue()).decode()) as name:
        one = job("a")
        one.request["image"] = name
        journal.accepted(one)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", raises(OSError("the disk is full")))
        with pytest.raises(OSError, match="full"):
            done(journal, one)
    again = reopened(journal)  # which makes it once more
    assert [each.request["image"] for each in again.recover()] == [name]
    assert again.inputs.path(name).exists()
    done(again, again.recover()[0])
    assert list((tmp_path / "inputs").iterdir()) == []


def raises(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_two_programs_do_not_share_a_journal(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.accepted(job("a"))
    second = Journal(tmp_path)
    assert second.recover() == []
    with pytest.raises(OSError, match="DISTRI_DATA"):
        second.accepted(job("b"))


def test_where_data_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTRI_DATA", raising=False)
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert data_folder() == tmp_path / "outputs"
    monkeypatch.setattr("os.access", lambda path, _: path == "/data")  # a persistent folder is there
    assert data_folder() == tmp_path / "outputs"
    monkeypatch.setenv("SPACE_ID", "me/space")
    assert data_folder() == Path("/data")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert data_folder() == tmp_path / "outputs"
    monkeypatch.setenv("DISTRI_DATA", str(tmp_path / "x"))
    assert data_folder() == tmp_path / "x"
