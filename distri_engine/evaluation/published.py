"""The latencies that the DistriFusion paper measured on A100s, and the machine that predicts them: how far off the
planner is, cell by cell, and why.
"""

from __future__ import annotations

from dataclasses import dataclass

from distri_engine.config import DistriConfig, Parallelism, SyncMode
from distri_engine.evaluation.costs import Costs
from distri_engine.evaluation.machine import Machine
from distri_engine.evaluation.planner import Picture, Way, predicted
from distri_engine.request import GenerationRequest

# One set of figures for all cells below: the least squares of their logarithms, rounded.
A100 = Machine(
    flops=163e12,  # of 312e12 in float16
    memory=1.8e12,  # of 2.0e12
    launch_s=5.3e-6,  # between two kernels of a CUDA graph, and what a kernel takes to fill and drain the device
    bandwidth=47e9,  # of NVLink's 300e9: a message here is a layer's, a few MB
    message_s=24e-6,
    overlap=0.39,
)

# SDXL, 50 steps of DDIM, guidance, warm-up 4. Seconds without the VAE's decode.
_DEVICES = (1, 2, 4, 8)
_DISTRIFUSION = {1024: (5.02, 3.35, 2.26, 1.77), 2048: (23.7, 13.3, 7.60, 4.81), 3840: (140.0, 76.6, 41.3, 22.9)}
_ON_EIGHT = {
    "tensor": {1024: 3.61, 2048: 11.7, 3840: 46.3},
    "full_sync": {1024: 2.21, 2048: 5.62, 3840: 24.7},
    "no_sync": {1024: 1.48, 2048: 4.14, 3840: 21.3},
}
_MIDDLE = (
    "the fit passes through the middle of these cells; a percent either way is what one FLOP/s figure for any share of "
    "any picture leaves"
)
# What the model does not know, by system and devices.
_WHY = {
    ("original", 1): (
        "both guidance branches of a whole picture in one batch fill an A100 better than any share of it does, and the "
        "one FLOP/s figure, for any batch and size, is a compromise between them"
    ),
    ("DistriFusion", 2): (
        "each device runs one guidance branch and sends next to nothing, yet needs 67 % of one device's time at 1024: "
        "a batch of one fills an A100 the less the smaller the picture is, and there is one FLOP/s figure for any batch"
    ),
    ("DistriFusion", 4): _MIDDLE,
    ("DistriFusion", 8): _MIDDLE,
    ("tensor", 8): (
        "an all-reduce is two exchanges here, each with a message's latency, and one of the library's there, which is "
        "what counts at 1024; the larger ones get a little less than the bandwidth that fits the other methods"
    ),
    ("full_sync", 8): (
        "225 waits a step, with one latency and one bandwidth for any message: at 1024 layers wait longer than that "
        "for the slowest peer, at 3840 large messages go faster than that"
    ),
    ("no_sync", 8): (
        "it is predicted as DistriFusion without messages but with the operations that prepare them, which at 1024 and "
        "2048 are too many; at 3840 they are nothing, and the one FLOP/s figure is a little high for bands"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One published latency."""

    system: str  # original, DistriFusion, full_sync, no_sync, tensor
    side: int  # pixels
    devices: int
    published: float  # seconds
    predicted: float
    why: str  # the two differ: what the model does not know

    @property
    def error(self) -> float:
        """Of the prediction, relative."""
        return self.predicted / self.published - 1


def check_published(costs: Costs, machine: Machine = A100) -> list[Cell]:
    """Every published cell; `costs` are SDXL's in float16. All but one device have guidance split over them."""
    cells = []

    def add(system: str, side: int, devices: int, published: float) -> None:
        method = Parallelism.SINGLE if devices == 1 else Parallelism.TENSOR if system == "tensor" else Parallelism.PATCH
        mode = SyncMode(system) if system in tuple(SyncMode) else SyncMode.CORRECTED_ASYNC_GN
        request = GenerationRequest(prompt="-", height=side, width=side, steps=50)
        picture = Picture.of(request, DistriConfig(mode=mode), cell=8)
        way = Way(parallelism=method, ranks=devices, split_batch=devices > 1)
        seconds = predicted(picture, way, costs, machine).seconds(picture, way)
        why = _WHY[system, devices]
        cells.append(Cell(system=system, side=side, devices=devices, published=published, predicted=seconds, why=why))

    for side, row in _DISTRIFUSION.items():
        for devices, published in zip(_DEVICES, row, strict=True):
            add("original" if devices == 1 else "DistriFusion", side, devices, published)
    for system, column in _ON_EIGHT.items():
        for side, published in column.items():
            add(system, side, 8, published)
    return cells
