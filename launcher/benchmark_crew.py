"""The crew of a benchmark: one group of ranks and one process with diffusers by itself, all loaded once and asleep but
for those whose turn it is. What they do when told is benchmark_worker.py's business.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from distri_engine.evaluation.timing import Run, StepTime
from distri_engine.request import GenerationRequest
from launcher import png, wire
from launcher.batch import Failed, check_group, check_noted, killed_by, last_line, start_group, start_logged
from launcher.benchmark_rows import Row
from launcher.benchmark_worker import LOADING, SOCKET, STOCK_WORD, Loading
from launcher.schema import as_parameters
from launcher.start import make_run_dir, quiet_environment, remove_run_dir

WORKER = ("-m", "launcher.benchmark_worker")
_POLL_S = 0.5  # while processes start
_LEAVE_S = 30.0  # that ranks get for leaving by themselves
_END_S = 15.0  # that they get once they are told to

Hello = dict[str, Any]


class BenchmarkCrew:
    """Everybody, from the start to the end of a `with`. None is left behind, however that ends."""

    def __init__(self, *, ranks: int, stock: bool, loading: Loading, pictures: Path | None) -> None:
        """`stock`: whether diffusers takes part. The last picture of every row is left in the folder `pictures`, if
        there is one.
        """
        self._loading = loading
        self._run_dir = make_run_dir()
        self._folder = pictures if pictures is not None else self._run_dir
        self._world = ranks
        self._wants_stock = stock
        self._group: subprocess.Popen[bytes] | None = None
        self._stock: subprocess.Popen[bytes] | None = None
        self._socks: dict[int | None, socket.socket] = {}  # by rank; None: diffusers
        self.hellos: dict[int | None, Hello] = {}

    def __enter__(self) -> BenchmarkCrew:
        try:
            self._start()
        except BaseException:
            self._end(in_order=False)
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end(in_order=kind is None)

    def make(self, row: Row, request: GenerationRequest) -> Run:
        """One picture of `row`. Raises ValueError or Failed if that cannot be."""
        job: dict[str, Any] = {
            "request": as_parameters(request),
            "picture": str(self._folder / f"{row.name}.png"),
            "chunks": {},
            "threads": row.threads,
        }
        if row.config is None:
            answers = self._ask([None], job)
        else:
            job["config"] = as_parameters(row.config)
            about = {name: self.hellos[0][name] for name in ("model", "device")}
            job["chunks"] = png.chunks(request, row.config, **about, ranks=self._world)
            # The engine wants to be called on all ranks. Those that rest do so at once, before any clock runs.
            self._ask(range(row.ranks, self._world), job)
            answers = self._ask(range(row.ranks), job)
        return Run(
            total_s=answers[0]["total_s"],
            seconds=answers[0]["seconds"],
            steps=tuple(
                tuple(StepTime(stale=bool(stale), compute_ms=compute, wait_ms=wait) for stale, compute, wait in one)
                for one in (answer["steps"] for answer in answers)
            ),
        )

    def _ask(self, workers: Sequence[int | None], job: dict[str, Any]) -> list[dict[str, Any]]:
        for worker in workers:
            try:
                wire.send(self._socks[worker], job)
            except OSError:
                self._explain(worker)
        return [self._hear(worker) for worker in workers]

    # --- start

    def _start(self) -> None:
        (self._run_dir / LOADING).write_text(json.dumps(asdict(self._loading)))
        with wire.listen(self._run_dir / SOCKET) as listener:
            self._group = start_group(self._run_dir, self._world, self._loading.device, WORKER)
            if self._wants_stock:
                command = [sys.executable, *WORKER, STOCK_WORD, str(self._run_dir)]
                env = {**os.environ, **quiet_environment(os.environ)}
                self._stock = start_logged(command, env, self._run_dir / f"{STOCK_WORD}.log")
            listener.settimeout(_POLL_S)
            while len(self._socks) < self._world + self._wants_stock:
                self._accept(listener)
        self.hellos = {worker: self._hear(worker) for worker in self._socks}

    def _accept(self, listener: socket.socket) -> None:
        """Wait a little for the next process of ours to connect, which all do before they load anything."""
        with contextlib.suppress(TimeoutError):
            if found := wire.accept(listener):
                sock, _ = found
                if name := wire.receive(sock):
                    self._socks[name["rank"]] = sock
        if self._group is not None and self._group.poll() is not None:
            self._explain(0)
        if self._stock is not None and self._stock.poll() is not None:
            self._explain(None)

    # --- end

    def _hear(self, worker: int | None) -> dict[str, Any]:
        answer = wire.receive(self._socks[worker])
        if answer is None:
            self._explain(worker)
        return answer

    def _explain(self, worker: int | None) -> NoReturn:
        """A process has hung up: raise why."""
        if worker is None:
            self._explain_stock()
        assert self._group is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            check_group(self._run_dir, self._group.wait(_LEAVE_S))  # torchrun ends the other ranks
        raise Failed(f"rank {worker} stopped answering")

    def _explain_stock(self) -> NoReturn:
        assert self._stock is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._stock.wait(_END_S)
            if code < 0:
                raise Failed(f"the process with diffusers by itself {killed_by(-code)}")
        check_noted(self._run_dir)
        last = last_line(self._run_dir / f"{STOCK_WORD}.log") or "it stopped answering"
        raise Failed(f"the process with diffusers by itself ended: {last}")

    def _end(self, *, in_order: bool) -> None:
        """End everybody: in order, they leave by themselves once nobody speaks to them."""
        try:
            for sock in self._socks.values():
                wire.close(sock)
            processes = [process for process in (self._group, self._stock) if process is not None]
            if in_order:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    for process in processes:
                        process.wait(_LEAVE_S)
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(_END_S)
                except subprocess.TimeoutExpired:
                    process.kill()  # the kernel then ends its ranks
                    process.wait()
        finally:
            remove_run_dir(self._run_dir)
