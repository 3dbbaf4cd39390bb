"""The processes of a benchmark: a rank of the group, or diffusers by itself. Each sleeps in a blocking read of its
socket until it is told to make a picture, and answers with what that took; who is told what is benchmark_crew.py's
business.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distri_engine.request import GenerationRequest
from launcher import png, wire
from launcher.batch import follow, noting_errors
from launcher.process import MakeEngine, die_with_agent, freeze_garbage_collector, load_engine
from launcher.schema import as_config, as_request
from launcher.start import Place

SOCKET, LOADING = "benchmark", "loading.json"  # in the run directory
STOCK_WORD = "diffusers"  # this module's argument for the process that is no rank
_CONNECT_S = 60.0

Frame = dict[str, Any]
Made = tuple[list[Any], Mapping[str, float], list[list[float]]]  # pictures, seconds, (stale, compute, wait ms) a step


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What is the same for all pictures."""

    model: str
    device: str
    threads: int  # of every rank
    text_encoder_on: str
    decode: bool  # whether pictures are made, or latents are enough


def be_rank(make_engine: MakeEngine = load_engine) -> None:
    """One rank of the group, from torchrun's start to the end of the benchmark."""
    die_with_agent()
    place = Place.here()
    with noting_errors(place.run_dir):
        sock, loading = _meet(place.run_dir, place.rank)
        import torch

        from distri_engine.mesh import resolve_device
        from launcher import group

        rank, world = place.rank, place.world_size
        engine = make_engine(loading.model, loading.device, rank, world, loading.text_encoder_on)
        torch.set_num_threads(loading.threads)
        device = resolve_device(loading.device)
        engine.attach(group.join("benchmark", place.run_dir, rank=rank, world_size=world, device=device))

        def make(request: GenerationRequest, job: Frame) -> Made:
            steps, finished = follow(engine.generate(request, as_config(job["config"]), decode=loading.decode))
            times = [[float(step.phase == "stale"), step.compute_ms, step.wait_ms] for step in steps]
            return finished.images, finished.seconds, times

        info = engine.info
        _ready(sock, device=info.device, model=info.name, default_size=info.default_size)
        _serve(sock, make)
        engine.detach()
        group.leave()


def be_stock(run_dir: Path) -> None:
    """The process that holds diffusers by itself."""
    with noting_errors(run_dir):
        sock, loading = _meet(run_dir, None)
        import torch

        from distri_engine.evaluation.stock import StockDiffusers

        stock = StockDiffusers(loading.model, device=loading.device)

        def make(request: GenerationRequest, job: Frame) -> Made:
            torch.set_num_threads(job["threads"])
            picture = stock.generate(request, decode=loading.decode)
            return picture.images, picture.seconds, [[0.0, 1e3 * seconds, 0.0] for seconds in picture.step_seconds]

        _ready(sock, device=stock.device_name, model=loading.model)
        _serve(sock, make)


def _meet(run_dir: Path, rank: int | None) -> tuple[socket.socket, Loading]:
    # Signals keep the kernel's default: a Python handler would make a rank that is blocked in a collective unkillable.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sock = wire.connect(run_dir / SOCKET, _CONNECT_S)
    wire.send(sock, {"rank": rank})
    return sock, Loading(**json.loads((run_dir / LOADING).read_text()))


def _ready(sock: socket.socket, **about: Any) -> None:
    """Say that everything is loaded, and what."""
    freeze_garbage_collector()
    wire.send(sock, about | {name: version(name) for name in ("torch", "diffusers")})


def _serve(sock: socket.socket, make: Callable[[GenerationRequest, Frame], Made]) -> None:
    """Make picture after picture until the other side hangs up. A clock runs from having the request to having the
    result: on disk, where a picture is wanted.
    """
    while (job := wire.receive(sock)) is not None:
        start = time.perf_counter()
        images, seconds, steps = make(as_request(job["request"]), job)
        made = time.perf_counter()
        if images:
            png.save(images[0], Path(job["picture"]), job["chunks"])
        end = time.perf_counter()
        steps = [[round(figure, 4) for figure in step] for step in steps]  # so that a thousand fit a frame
        wire.send(sock, {"total_s": end - start, "seconds": {**seconds, "save": end - made}, "steps": steps})


def main(make_engine: MakeEngine = load_engine) -> None:
    """Be what the command line says."""
    if sys.argv[1:2] == [STOCK_WORD]:
        be_stock(Path(sys.argv[2]))
    else:
        be_rank(make_engine)


if __name__ == "__main__":
    main()
