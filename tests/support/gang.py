"""Runs a function on N gloo ranks, one thread each, on loopback. The ranks are forked from a server that has imported
once what they need (warm.py), and are always ended by pid.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.warm"])
_TIMEOUT = 480  # seconds


def free_port() -> int:
    """A TCP port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_on_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(*args)` on `world` ranks with torchrun's variables set; returns what each rank returned.

    Tensors travel through files. Raises AssertionError with the ranks' tracebacks if one fails or hangs.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            _CONTEXT.Process(target=_rank, args=(rank, world, port, folder, function, args), daemon=True)
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        try:
            deadline = time.monotonic() + _TIMEOUT
            while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
                if any(Path(folder).glob("*.error")):
                    time.sleep(1)  # the others may want to say something, too
                    break
                time.sleep(0.01)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                    process.join()
        failures = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
        assert not failures, "\n".join(failures)
        missing = [rank for rank in range(world) if not Path(folder, f"{rank}.result").exists()]
        assert not missing, f"ranks {missing} ended without a result"
        return [torch.load(Path(folder, f"{rank}.result"), weights_only=False) for rank in range(world)]


def side_by_side(function: Callable[..., Any], jobs: list[tuple[Any, ...]]) -> list[Any]:
    """`function(*job)` of every job, by two processes that know nothing of each other: oracles, on as many cores."""
    results: list[Any] = [None] * len(jobs)
    for half, made in enumerate(run_on_ranks(2, _every_second, function, jobs)):
        results[half::2] = made
    return results


def _every_second(function: Callable[..., Any], jobs: list[tuple[Any, ...]]) -> list[Any]:
    half = int(os.environ.pop("RANK"))  # there is no group here
    return [function(*job) for job in jobs[half::2]]


def prepare() -> None:
    """Let the server begin with its imports, which take seconds, while the caller does something else."""
    ensure_running()


def _rank(rank: int, world: int, port: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    torch.set_num_threads(1)
    try:
        result = function(*args)
        partial = Path(folder, f"{rank}.partial")
        torch.save(result, partial)
        partial.rename(Path(folder, f"{rank}.result"))
    except BaseException:
        Path(folder, f"{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        sys.exit(1)
