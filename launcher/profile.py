"""`python -m launcher profile`: what a picture costs each device, as a table and as JSON. Counted by the engine's
evaluation package, without weights and devices; here is only what is asked for
and what is reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distri_engine.bands import check_bands
from distri_engine.config import AUTO, DistriConfig, Parallelism, check_size
from distri_engine.evaluation.machine import Machine, picture_seconds
from distri_engine.request import GenerationRequest
from launcher import plan
from launcher.files import check_target, write_json
from launcher.model import sizes
from launcher.options import choices, factors, given, number, rank_counts, refuse_ignored
from launcher.profile_table import table

if TYPE_CHECKING:
    from distri_engine.evaluation.profile import Profile, RankCost

DTYPES = ("float16", "float32")
RANKS = "1,2,4,8"
USED = {  # options beside these two that count for them: a plan is what decides on methods and guidance split
    "plan": (
        *("height", "width", "steps", "guidance_scale", "ranks", "mode", "warmup_steps", "model", "dtype"),
        *("tflops", "gbps", "json"),
    ),
    "check_published": ("json",),
}

PREDICTION = """\
With --tflops and --gbps, the seconds that denoising takes at least: a step takes the longer of computing (two FLOP a
MAC) and of the messages under way meanwhile, and then as long as the messages that are waited for. Those are all of
them in warm-up steps and synchronous methods, and the output alone in displaced steps. The slowest rank counts.
Launching operations, traffic to memory, the delay of a message, text and VAE are free."""


@dataclass(frozen=True)
class Rates:
    """What the predicted seconds assume of every device."""

    tflops: float  # 10^12 FLOP/s that it sustains
    gbps: float  # 10^9 bit/s of its link to the others, in each direction at once


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    request, config = GenerationRequest(prompt="-"), DistriConfig()  # for the defaults
    parser.description = "What a picture costs each device, counted on shapes alone. " + PREDICTION
    parser.add_argument("--height", type=int, help="pixels (default: the model's size)")
    parser.add_argument("--width", type=int, help="pixels (default: the model's size)")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=request.guidance_scale, help="(default: %(default)s)")
    parser.add_argument("--ranks", metavar="LIST", help=f"rank counts (default: {RANKS}; with --plan this machine's)")
    parser.add_argument(
        "--parallelism", metavar="LIST", help=f"of {', '.join(Parallelism)} (default: all but paradigms)"
    )
    parser.add_argument("--mode", default=config.mode.value, help="of patch, as in generate (default: %(default)s)")
    parser.add_argument("--warmup-steps", default=str(config.warmup_steps), help="(default: %(default)s)")
    parser.add_argument("--extrapolation-memory", default="0.5", metavar="M|M,M,M", help="of mode extrapolated")
    parser.add_argument("--split-scheme", default=config.split_scheme.value, help="row, col or alternate")
    parser.add_argument("--no-split-batch", action="store_true", help="both guidance branches on every rank")
    parser.add_argument("--model", default="sdxl", help="sdxl, sd15 or a diffusers model folder (default: %(default)s)")
    parser.add_argument("--dtype", help=f"{' or '.join(DTYPES)} (default: {DTYPES[0]}; with --plan the device's)")
    parser.add_argument("--tflops", type=float, metavar="T", help="10^12 FLOP/s that a device sustains")
    parser.add_argument("--gbps", type=float, metavar="G", help="Gbit/s of a device's link, in each direction")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plan", action="store_true", help="say what Auto would choose here; measures the devices")
    parser.add_argument("--check-published", action="store_true", help="compare predictions with the paper's latencies")


def run(words: argparse.Namespace) -> None:
    """Check, count, print. Raises ValueError for what makes no sense."""
    if words.json is not None:
        check_target(words.json, "profile.json")
    if words.check_published or words.plan:
        option = "check_published" if words.check_published else "plan"
        ignored = [name for name in given(words, add_options) if name not in (option, *USED[option])]
        refuse_ignored(f"--{option.replace('_', '-')}", ignored)
    if words.check_published:
        plan.published(words.json)
        return
    ranks = rank_counts(RANKS if words.ranks is None else words.ranks) if not words.plan else []
    machine = _machine(words.tflops, words.gbps)
    if words.warmup_steps == AUTO:
        raise ValueError("how long a warm-up of 'auto' takes depends on the picture; give --warmup-steps a number")
    if words.dtype not in (None, *DTYPES):
        raise ValueError(f"unknown dtype {words.dtype!r}; choose one of: {', '.join(DTYPES)}")
    request = GenerationRequest(
        prompt="-",
        height=words.height,
        width=words.width,
        steps=words.steps,
        guidance_scale=words.guidance_scale,
    )
    config = DistriConfig(
        mode=words.mode,
        warmup_steps=number(words.warmup_steps, int),
        extrapolation_memory=factors(words.extrapolation_memory),
        split_scheme=words.split_scheme,
        split_batch=not words.no_split_batch,
    )
    if words.plan:
        plan.run(request, config, words)
        return
    methods = None if words.parallelism is None else choices("parallelism", words.parallelism, Parallelism)
    dtype = words.dtype or DTYPES[0]
    report = measure(request, config, methods, ranks, model=words.model, dtype=dtype, machine=machine)
    if words.json is not None:
        write_json(report, words.json)
    print(table(report))


def measure(
    request: GenerationRequest,
    config: DistriConfig,
    methods: Sequence[Parallelism] | None,
    ranks: Sequence[int],
    *,
    model: str,
    dtype: str,
    machine: Rates | None,
) -> dict[str, Any]:
    """The figures of every method (None: all that can be counted) on every number of ranks, as they go into JSON.

    Raises ValueError if a model cannot be read, a method cannot be counted, or ranks cannot share the picture.
    """
    import torch

    from distri_engine.errors import EngineError
    from distri_engine.evaluation.models import PUBLISHED, VAE_SCALE, unet_on_meta
    from distri_engine.evaluation.profile import profile
    from distri_engine.methods import METHODS

    for method in methods or ():
        if METHODS[method].over_time:
            raise ValueError(
                f"parallelism {method} takes as many UNet evaluations as a picture needs to converge, which cannot be "
                "counted from shapes; its report, from `generate --report`, has them"
            )
    unet = unet_on_meta(model, getattr(torch, dtype))
    unit = 2 ** (len(unet.config.block_out_channels) - 1)
    side, multiple = (None, VAE_SCALE * unit) if model in PUBLISHED else sizes(model)
    scale = multiple // unit
    request = request.resolved(default_size=side or int(unet.config.sample_size) * scale)
    assert request.height is not None
    assert request.width is not None
    for name in ("height", "width"):
        check_size(name, getattr(request, name), multiple)
    # One device makes the picture of `single`, however many there are.
    runs = [
        (config.replace(parallelism=method), count)
        for method in methods or (method for method in METHODS if not METHODS[method].over_time)
        for count in ((1,) if METHODS[method].alone else ranks)
    ]
    for one, count in runs:
        check_bands(request, one, count, multiple)
    size = (request.height // scale, request.width // scale)
    try:
        profiles = [
            profile(unet, one, count, size=size, steps=request.steps, guided=request.guided) for one, count in runs
        ]
    except EngineError as error:
        raise ValueError(str(error)) from None
    return {
        "model": model,
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "dtype": dtype,
        "height": request.height,
        "width": request.width,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "mode": config.mode.value,
        "warmup_steps": config.warmup_steps,
        "split_scheme": config.split_scheme.value,
        "split_batch": config.split_batch,
        "machine": None if machine is None else asdict(machine),
        "rows": [_row(one, machine) for one in profiles],
    }


def _row(one: Profile, machine: Rates | None) -> dict[str, Any]:
    """One line of the table. MACs are the busiest rank's, messages those of the rank that gets most."""
    loudest = one.loudest
    row: dict[str, Any] = {
        "parallelism": one.config.parallelism.value,
        "ranks": one.ranks,
        "guidance_branches_apart": one.branches == 2,
        "macs_per_picture": one.busiest.macs,
        "macs_per_step": one.busiest.steps[-1].macs,
        "macs_per_picture_least": one.least.macs,
        "received_per_step": _messages(loudest),
        "received_per_step_bytes": loudest.steps[-1].total.received,
        "received_per_step_elements": loudest.steps[-1].total.elements,
        "comm_elements": loudest.steps[-1].comm,
        "comm_elements_of_the_original": loudest.steps[-1].comm_of_the_original,
        "buffer_bytes": dict(one.buffers),
        "weight_bytes": one.weights,
        "seconds": None,
        "unlike_ranks": [_rank(cost) for cost in one.costs],
    }
    if machine is not None:
        row["seconds"] = picture_seconds(one, Machine(flops=machine.tflops * 1e12, bandwidth=machine.gbps * 1e9 / 8))
    return row


def _messages(cost: RankCost) -> dict[str, dict[str, int]]:
    return {
        kind: {"elements": traffic.elements, "bytes": traffic.received}
        for kind, traffic in cost.steps[-1].traffic.items()
    }


def _rank(cost: RankCost) -> dict[str, Any]:
    """Everything that was counted on one rank."""
    return {
        "rank": cost.rank,
        "buffer_bytes": dict(cost.buffers),
        "steps": [
            {
                "times": step.times,
                "phase": step.phase.value,
                "macs": step.macs,
                "waited": {kind: asdict(traffic) for kind, traffic in step.waited.items()},
                "overlapped": {kind: asdict(traffic) for kind, traffic in step.overlapped.items()},
            }
            for step in cost.steps
        ],
    }


def _machine(tflops: float | None, gbps: float | None) -> Rates | None:
    if tflops is None and gbps is None:
        return None
    if tflops is None or gbps is None:
        raise ValueError("--tflops and --gbps are needed both to predict seconds; give the other one, too")
    for name, value in (("tflops", tflops), ("gbps", gbps)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} {value:g} is not a positive number; give what the machine sustains")
    return Rates(tflops, gbps)
