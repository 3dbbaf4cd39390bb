"""`python -m launcher profile --plan` and `--check-published`: the planner on the command line. Predicting and choosing
is the engine's business; here is only what is asked for and what is reported.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import asdict
from pathlib import Path

from distri_engine.config import DistriConfig, check_size
from distri_engine.evaluation.experience import Experience
from distri_engine.evaluation.machine import Machine
from distri_engine.evaluation.planner import Picture, Plan, choose, ways
from distri_engine.evaluation.published import A100, Cell, check_published
from distri_engine.request import GenerationRequest
from launcher.files import write_json
from launcher.measure import DTYPES, costs_of, survey
from launcher.options import CPU_RANKS, MAX_RANKS, count_gpus, usable_cores

FIGURES = {
    "flops": ("{:.4g} TFLOP/s", 1e12),
    "memory": ("{:.4g} GB/s of memory", 1e9),
    "launch_s": ("{:.3g} us an operation", 1e-6),
    "bandwidth": ("{:.4g} Gbit/s between devices", 1e9 / 8),
    "message_s": ("{:.3g} us a message", 1e-6),
}


def run(request: GenerationRequest, config: DistriConfig, words: argparse.Namespace) -> None:
    """Print what the planner would choose here. Raises ValueError for what makes no sense, Unmeasured (a RuntimeError)
    if the devices cannot be measured.
    """
    gpus = count_gpus()
    ranks = gpus or CPU_RANKS if words.ranks is None else _ranks(words.ranks)
    given = None if words.tflops is None else (1e12 * words.tflops, 1e9 / 8 * words.gbps)
    device = "cuda" if given or gpus else "cpu"
    machine, measured = A100, tuple[str, ...]()
    if given:
        machine = dataclasses.replace(A100, flops=given[0], bandwidth=given[1])
    else:
        found = survey(device, ranks, max(1, usable_cores() // ranks))
        machine, measured = found.machine, found.measured
    plan = planned(request, config, ranks, machine, model=words.model, dtype=words.dtype or DTYPES[device])
    sentence = f"Using {plan.choice()}, {plan.chosen.seconds:.2f} s: {plan.reason()}."
    about = described(machine, measured, ("flops", "bandwidth") if given else ())
    if words.json is not None:
        report = plan.as_json(sentence) | {"model": words.model, "machine": asdict(machine), "measured": list(measured)}
        write_json(report, words.json)
    print(f"{sentence}\n{about}")


def planned(
    request: GenerationRequest, config: DistriConfig, ranks: int, machine: Machine, *, model: str, dtype: str
) -> Plan:
    """What to choose for `request` on `ranks` devices. Raises ValueError if the model cannot be read or counted, or the
    picture does not fit it.
    """
    from distri_engine.errors import EngineError
    from distri_engine.evaluation.models import VAE_SCALE, unet_config

    settings = unet_config(model)
    try:
        costs = costs_of(settings, dtype, ranks)
    except EngineError as error:
        raise ValueError(str(error)) from None
    multiple = VAE_SCALE * costs.unit
    request = request.resolved(default_size=int(settings.get("sample_size") or 64) * VAE_SCALE)
    for name in ("height", "width"):
        check_size(name, getattr(request, name), multiple)
    picture = Picture.of(request, config, cell=VAE_SCALE)
    experience = Experience(costs, machine)
    return choose(
        picture, [experience.estimate(picture, way) for way in ways(request, config, ranks, multiple, costs)], ranks
    )


def described(machine: Machine, measured: tuple[str, ...], given: tuple[str, ...]) -> str:
    """The machine's figures, and where they come from."""
    sources = {"Given": given, "Measured here": measured}
    sources["Assumed, an A100's"] = tuple(name for name in FIGURES if name not in (*given, *measured))
    lines = []
    for source, names in sources.items():
        known = [(getattr(machine, name), *FIGURES[name]) for name in FIGURES if name in names]
        lines += [f"{source}: {', '.join(text.format(value / unit) for value, text, unit in known)}."] if known else []
    return "\n".join(lines)


def published(target: Path | None) -> None:
    """Print how far the prediction is from the paper's latencies."""
    from distri_engine.evaluation.models import unet_config

    cells = check_published(costs_of(unet_config("sdxl"), "float16", 8))
    if target is not None:
        rows = [asdict(cell) | {"error": cell.error} for cell in cells]
        write_json({"machine": asdict(A100), "cells": rows}, target)
    lines = [
        "SDXL, 50 steps, guidance split over devices, without VAE: seconds on A100s, published and predicted",
        described(A100, (), tuple(FIGURES)).replace("Given", "One set of figures, fitted to these cells"),
        "",
        f"{'method':<14}{'devices':>7}{'size':>7}{'published':>11}{'predicted':>11}{'error':>8}",
    ]
    lines += [
        f"{cell.system:<14}{cell.devices:>7}{cell.side:>7}{cell.published:>11.2f}{cell.predicted:>11.2f}"
        f"{100 * cell.error:>+7.1f}%"
        for cell in cells
    ]
    mean = sum(abs(cell.error) for cell in cells) / len(cells)
    lines += ["", f"The mean error is {100 * mean:.1f} %. Why:", *_reasons(cells)]
    print("\n".join(lines))


def _reasons(cells: list[Cell]) -> list[str]:
    """A line for each cause of errors, with the cells that are off because of it."""
    lines = []
    for why in dict.fromkeys(cell.why for cell in cells):
        same = [cell for cell in cells if cell.why == why]
        errors = ", ".join(f"{cell.devices} at {cell.side} {100 * cell.error:+.1f} %" for cell in same)
        lines.append(f"{same[0].system} ({errors}): {why}.")
    return lines


def _ranks(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        raise ValueError(f"with --plan, ranks {text!r} is not one number: that of the devices there are") from None
    if not 1 <= count <= MAX_RANKS:
        raise ValueError(f"{count} ranks are out of range; give a number from 1 to {MAX_RANKS}")
    return count
