"""What one device of this machine sustains, measured in a few seconds by a process of its own, so that nobody else
needs torch; it also counts what a model's steps cost, if that is not known. What follows is the planner's business.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distri_engine.config import DistriConfig
from distri_engine.evaluation.costs import Costs, known_costs
from distri_engine.evaluation.machine import Machine
from distri_engine.evaluation.published import A100
from launcher.process import die_with

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"cpu": "float32", "cuda": "float16"}  # in which the engine computes there
_RUNS, _RUN_S = 5, 0.04  # of each measurement: the fastest of so many, each so long at least
_MESSAGE = 2 << 20  # bytes of a message that bandwidth is measured with: what a layer has to say
_TURNS = 300  # messages each way
_PATIENCE_S = 600.0

Clock = Callable[[], float]


class Unmeasured(RuntimeError):
    """The measuring process failed; the message is for people."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the planner must know."""

    machine: Machine
    measured: tuple[str, ...]  # which figures of the machine
    costs: Costs | None  # None: nobody asked


# --- asked for here -----------------------------------------------------------------------------------------------


def survey(device: str, ranks: int, threads: int, unet: Path | None = None, *, quietly: bool = False) -> Survey:
    """Measure one device with the threads that a rank has, and count the UNet of settings `unet`, in a process of its
    own. `quietly`: it takes only the time that nobody else wants. Raises Unmeasured.
    """
    words = ["--device", device, "--ranks", str(ranks), "--threads", str(threads)]
    words += ["--unet", str(unet)] if unet else []
    try:
        done = subprocess.run(
            [sys.executable, "-m", "launcher.measure", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            preexec_fn=partial(_begin, os.getpid(), quietly),
        )
    except subprocess.TimeoutExpired:
        raise Unmeasured(f"this machine could not be measured within {_PATIENCE_S:.0f} s") from None
    try:
        found = json.loads(done.stdout)
        costs = Costs.from_json(found["costs"]) if found["costs"] else None
        return Survey(machine=Machine(**found["machine"]), measured=tuple(found["measured"]), costs=costs)
    except (ValueError, KeyError, TypeError):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or [f"exit code {done.returncode}"]
        raise Unmeasured(f"this machine could not be measured: {last[0].strip()}") from None


def _begin(parent: int, quietly: bool) -> None:
    die_with(parent)
    if quietly:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except OSError:  # some containers have no such class
            os.nice(19)


# --- done in the process ------------------------------------------------------------------------------------------


def main() -> None:
    """Print what was found as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    for name in ("ranks", "threads"):
        parser.add_argument(f"--{name}", required=True, type=int)
    parser.add_argument("--unet", type=Path)
    words = parser.parse_args()
    settings = json.loads(words.unet.read_text()) if words.unet else None
    machine, measured = measure(words.device, words.threads)
    costs = costs_of(settings, DTYPES[words.device], words.ranks) if settings else None
    found = {"machine": asdict(machine), "measured": measured, "costs": costs and costs.as_json()}
    print(json.dumps(found))


def costs_of(unet_config: dict[str, Any], dtype: str, ranks: int) -> Costs:
    """The costs of a UNet: known ones, else counted, which takes a minute for a large one.

    Raises ValueError for settings that make no UNet, EngineError for a UNet that has no form on bands.
    """
    if costs := known_costs(unet_config, dtype):
        return costs
    import torch

    from distri_engine.evaluation.counting import count_costs
    from distri_engine.evaluation.models import unet_of

    # Tensor parallelism is counted rank by rank; it pays on all devices or not at all.
    groups = {ranks, ranks // 2} - {0, 1}
    return count_costs(unet_of(unet_config, getattr(torch, dtype), name="this model"), DistriConfig().mode, groups)


def measure(device: str, threads: int) -> tuple[Machine, list[str]]:
    """The machine, and which of its figures were measured here; the others are assumed to be an A100's."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
        figures = {"message_s": _calling(), "bandwidth": _copying()}  # first: who has used threads must not fork
        torch.set_num_threads(threads)
        figures |= _computing(torch.device("cpu"), lambda: time.process_time() / threads)
        # The core that computes makes the copies; in stale steps peers read where the sender wrote: one of two.
        return Machine(**figures, overlap=0.5), list(figures)

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    figures = _computing(torch.device("cuda", 0), clock)
    if torch.cuda.device_count() > 1:
        here = torch.empty(_MESSAGE, dtype=torch.uint8, device="cuda:0")
        there = torch.empty(_MESSAGE, dtype=torch.uint8, device="cuda:1")
        figures["bandwidth"] = _MESSAGE / _fastest(lambda: there.copy_(here), clock)
    return replace(A100, **figures), list(figures)


def _computing(where: torch.device, clock: Clock) -> dict[str, float]:
    """Products of the shapes that UNets have, a function of what no cache holds, and modules with next to nothing to
    do.
    """
    import torch
    from torch.nn import functional as F

    big, dtype = where.type != "cpu", getattr(torch, DTYPES[where.type])
    tokens, channels, side = (4096, 1280, 64) if big else (1024, 320, 32)
    layers = [layer for _ in range(20) for layer in (torch.nn.Linear(8, 8), torch.nn.SiLU(), torch.nn.LayerNorm(8))]
    model = torch.nn.Sequential(*layers).to(where, dtype)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=where, dtype=dtype)

    with torch.inference_mode():
        x, weight, little = draw(tokens, channels), draw(channels, channels), draw(1, 8)
        image, kernel = draw(1, channels, side, side), draw(channels, channels, 3, 3)
        many = draw((64 if big else 4) << 20)
        out = torch.empty_like(many)
        product_s = _fastest(lambda: F.linear(x, weight), clock)
        convolution_s = _fastest(lambda: F.conv2d(image, kernel, padding=1), clock)
        moving_s = _fastest(lambda: torch.sigmoid(many, out=out), clock)
        launching_s = _fastest(lambda: model(little), clock)
    rates = [2 * tokens * channels**2 / product_s, 2 * 9 * side**2 * channels**2 / convolution_s]
    return {
        "flops": statistics.harmonic_mean(rates),
        "memory": 2 * many.nbytes / moving_s,
        "launch_s": launching_s / len(layers),
    }


def _copying() -> float:
    """Bytes/s of a message through shared memory: the sender copies it in, the receiver out."""
    import torch

    pages = torch.frombuffer(mmap.mmap(-1, _MESSAGE), dtype=torch.uint8)
    message, arrived = torch.zeros(_MESSAGE, dtype=torch.uint8), torch.empty(_MESSAGE, dtype=torch.uint8)
    return _MESSAGE / _fastest(lambda: (pages.copy_(message), arrived.copy_(pages)), time.process_time)


def _calling() -> float:
    """Seconds that a message without content takes, over the links that ranks of one host have."""
    import torch

    from distri_engine.shared_memory import HostLinks, listen

    nothing = torch.zeros(1, dtype=torch.uint8)
    times = []
    with tempfile.TemporaryDirectory(prefix="distri-") as folder:
        doors = [listen(Path(folder), rank, 2, _PATIENCE_S) for rank in (0, 1)]
        parent, child = os.getpid(), os.fork()
        rank = int(child == 0)
        try:
            if rank:
                die_with(parent)
            links = HostLinks.meet(Path(folder), rank, 2, doors[rank], _PATIENCE_S)
            for turn in range(_TURNS):
                start = time.perf_counter()
                links.send(turn, 1 - rank, nothing)
                links.receive(turn, 1 - rank, nothing)
                times.append(time.perf_counter() - start)
        finally:
            if rank:
                os._exit(0)
            os.waitpid(child, 0)
        links.close()
    return statistics.quantiles(times, n=10)[0]  # a busy machine keeps one of the two waiting now and then


def _fastest(call: Callable[[], object], clock: Clock) -> float:
    """Seconds that `call` takes when nothing disturbs it."""
    call()
    times, count = 1, 0.0
    while count < _RUN_S:
        times *= 2
        count = _run(call, times, clock)
    return min(_run(call, times, clock) for _ in range(_RUNS)) / times


def _run(call: Callable[[], object], times: int, clock: Clock) -> float:
    start = clock()
    for _ in range(times):
        call()
    return clock() - start


if __name__ == "__main__":
    main()
