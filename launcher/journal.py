"""The durable list of requests and pictures: append-only lines of JSON, each on disk before anybody is told. What a
request is doing between its lines is the hub's business.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from launcher.files import sweep, whole_file
from launcher.inputs import Inputs
from launcher.job import FINAL, MAX_ATTEMPTS, TWICE, Job
from launcher.schema import Record, as_config, as_request

REMEMBERED = 2000  # finished requests kept for the history, in memory and in the file
LEAN_BYTES = 8 * 2**20  # a file up to this size is left to grow


def data_folder() -> Path:
    """Where pictures and the journal live: $DISTRI_DATA, else a Space's /data, else ./outputs."""
    if folder := os.environ.get("DISTRI_DATA"):
        return Path(folder)
    if os.environ.get("SPACE_ID") and os.access("/data", os.W_OK):
        return Path("/data")
    return Path("outputs").resolve()


class Busy(OSError):
    """Another program works in the folder."""


class Journal:
    """One file of lines: `accepted`, `try`, `lost`, `untry`, `stop`, `finished`. Thread-safe; what makes no sense is
    skipped.

    Whenever it has doubled, it is rewritten with the requests that the history shows and those that are not finished.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = Inputs(folder, self._images)
        self._path = folder / "journal.jsonl"
        self._lock = threading.RLock()
        self._file: int | None = None
        self.fault: OSError | None = None  # why there is no history
        self._records: deque[Record] = deque(maxlen=REMEMBERED)
        self._open_jobs: dict[str, Job] = {}
        self._tried: set[str] = set()  # whose attempt has neither ended nor been seen to be lost
        self._stopped: set[str] = set()
        self._finished: set[str] = set()
        self._lean = 0  # bytes after it was rewritten
        try:
            self._open()
        except OSError as error:
            self.fault = error
            return  # `accepted` says so to whoever asks for a picture
        with self._path.open("rb") as lines:
            for line in lines:
                self._replay(line)
        sweep(folder, self._path.name)
        self.inputs.forget()
        self._slim()

    def recover(self) -> list[Job]:
        """What was accepted and never finished, in order, to be queued again. Attempts that were under way are lost.

        A request that took the group with it too often, or that somebody had stopped, is finished here.
        """
        with contextlib.suppress(OSError):  # whoever asks for the next picture is told
            for req in sorted(self._tried):
                self._append({"entry": "lost", "id": req})
                self._tried.discard(req)
        for job in list(self._open_jobs.values()):
            if job.id in self._stopped:
                job.end("cancelled", "Stopped. Your prompt and seed are kept.")
            elif job.attempts >= MAX_ATTEMPTS:
                job.end("failed", TWICE)
            if job.state in FINAL:
                with contextlib.suppress(OSError):  # whoever asks for the next picture is told
                    self.finished(job)
        return list(self._open_jobs.values())

    def accepted(self, job: Job) -> None:
        """Returns once the request would survive a crash. Raises OSError if it cannot be written."""
        entry = {name: getattr(job, name) for name in ("request", "config", "visitor", "comparison")}
        entry |= {"plan": job.plan} if job.plan is not None else {}
        self._append({"entry": "accepted", "id": job.id, **entry})
        with self._lock:
            self._open_jobs[job.id] = job

    def tried(self, job: Job) -> None:
        """An attempt begins. Raises OSError."""
        self._tried.add(job.id)
        self._append({"entry": "try", "id": job.id})

    def stopped(self, job: Job) -> None:
        """It must not run again. Raises OSError."""
        self._append({"entry": "stop", "id": job.id})

    def finished(self, job: Job) -> None:
        """The end of a request; a second one is ignored. Raises OSError, after taking note in memory."""
        end = {"state": job.state, "message": job.message, "pictures": job.pictures, "report": job.report}
        entry = {"entry": "finished", "id": job.id, "at": time.time(), **end}
        if self._remember(job.id, entry):
            self._append(entry)
            self.inputs.forget()
            self._slim()

    def spare(self) -> None:
        """The program is ended on purpose: the attempt under way does not count. Raises OSError."""
        for req in sorted(self._tried):
            self._append({"entry": "untry", "id": req})

    def history(self, *, visitor: str | None = None, limit: int = 24) -> list[Record]:
        """The newest finished requests first."""
        with self._lock:
            found = [record for record in reversed(self._records) if visitor is None or record.visitor == visitor]
        return found[:limit]

    def record(self, req: str) -> Record | None:
        """One finished request."""
        with self._lock:
            return next((record for record in reversed(self._records) if record.id == req), None)

    def _images(self) -> set[str]:
        with self._lock:
            return {name for job in self._open_jobs.values() if (name := job.request.get("image"))}

    def close(self) -> None:
        """Let go of the file; the next write takes it again."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _open(self) -> int:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(file).st_ino != self._path.stat().st_ino:
                    raise BlockingIOError  # its owner has rewritten it meanwhile
            except OSError:
                os.close(file)
                raise Busy(f"another program works in {self.folder}; set DISTRI_DATA to another folder") from None
            if (size := os.fstat(file).st_size) and os.pread(file, 1, size - 1) != b"\n":
                os.write(file, b"\n")  # a torn last line stays alone
            self._file = file
        return self._file

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            file = self._open()
            try:
                size = os.fstat(file).st_size
                if os.write(file, line) != len(line):
                    raise OSError("the disk is full")
                os.fsync(file)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, size)  # what was refused must not be found by a restart
                self.close()  # opening again isolates a torn line
                raise

    def _slim(self) -> None:
        """Rewrite the file if it has grown enough. A crash leaves the old file or the new one, a full disk the old."""
        with self._lock, contextlib.suppress(OSError):
            size = self._path.stat().st_size
            if size > max(LEAN_BYTES, 2 * self._lean):
                self._lean = size  # if this fails it is tried again at twice the size
                self._rewrite()

    def _rewrite(self) -> None:
        self._finished = {record.id for record in self._records}
        self._stopped &= self._open_jobs.keys()
        kept = self._finished | self._open_jobs.keys()
        file = -1
        try:
            with whole_file(self._path, 0o600) as new, self._path.open("rb") as old:
                new.writelines(line for line in old if _request_of(line) in kept)
                # It is locked before anybody can find it, and goes on under a descriptor of ours.
                file = os.dup(new.fileno())
                fcntl.flock(file, fcntl.LOCK_EX)
                fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)
        except OSError:
            if file >= 0:
                os.close(file)
            raise
        self.close()
        self._file = file
        self._lean = os.fstat(file).st_size

    def _replay(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
            req = entry["id"]
            match entry["entry"]:
                case "accepted" if req not in self._open_jobs and req not in self._finished:
                    as_request(entry["request"])
                    as_config(entry["config"])
                    names = ("request", "config", "visitor", "comparison")
                    self._open_jobs[req] = Job(id=req, plan=entry.get("plan"), **{name: entry[name] for name in names})
                case "try" if req in self._open_jobs:
                    self._open_jobs[req].attempts += 1
                    self._tried.add(req)
                case "lost":
                    self._tried.discard(req)
                case "untry" if req in self._tried:
                    self._open_jobs[req].attempts -= 1
                    self._tried.discard(req)
                case "stop":
                    self._stopped.add(req)
                case "finished":
                    self._remember(req, entry)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return

    def _remember(self, req: str, entry: dict[str, Any]) -> bool:
        with self._lock:
            job = self._open_jobs.get(req)
            if job is None or req in self._finished:
                return False
            record = Record(
                id=req,
                finished=float(entry["at"]),
                state=str(entry["state"]),
                request=job.request,
                config=job.config,
                picture=entry["pictures"][0] if entry["pictures"] else None,
                report=entry["report"],
                message=str(entry["message"]),
                visitor=job.visitor,
                comparison=job.comparison,
            )
            del self._open_jobs[req]
            self._tried.discard(req)
            self._finished.add(req)
            self._records.append(record)
            return True


def _request_of(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["id"])
    except (ValueError, KeyError, TypeError):
        return None
