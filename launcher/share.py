"""`python -m launcher benchmark --share-of 2,4,8 --random-weights sdxl`: what one of so many ranks computes in a step,
timed on one device, without peers and without trained weights. How that is done is the engine's evaluation package's
business; here is what is asked for, and the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from distri_engine.config import DistriConfig, Parallelism, SyncMode, check_choice, check_int, check_size
from launcher.columns import columns
from launcher.options import rank_counts, resolve

DTYPES = ("float16", "bfloat16", "float32")
SIDE = 1024  # pixels, unless asked otherwise
STOCK, COMPILED = "diffusers", "diffusers, compiled"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the benchmark command understands beside its own options."""
    group = parser.add_argument_group("one rank's share, on one device, with random weights, in place of pictures")
    group.add_argument("--share-of", metavar="LIST", help="time a step of one of so many ranks: 2,4,8")
    group.add_argument("--random-weights", metavar="MODEL", help="sdxl, sd15 or a model folder (default: sdxl)")
    group.add_argument("--dtype", help=f"of {', '.join(DTYPES)} (default: float16 on a GPU, else float32)")
    group.add_argument("--compile", action="store_true", help="also time diffusers' UNet with torch.compile")


def measure(words: argparse.Namespace) -> dict[str, Any]:
    """The figures as they go into JSON. Raises ValueError for what makes no sense."""
    import torch

    from distri_engine.evaluation.models import VAE_SCALE, unet_on_meta
    from distri_engine.evaluation.share import fill, real_inputs, share_of_step
    from distri_engine.mesh import device_name, resolve_device

    counts = rank_counts(words.share_of)
    _, kind, _ = resolve(1, words.device, None)
    device = resolve_device(kind)
    name = words.dtype or ("float16" if device.type == "cuda" else "float32")
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; choose one of: {', '.join(DTYPES)}")
    times = check_int("test_times", words.test_times, 1, 10_000)
    warmups = check_int("warmup_times", words.warmup_times, 0, 10_000)
    if device.type == "cpu":
        torch.set_num_threads(check_int("threads_per_rank", words.threads_per_rank or 1, 1, 1024))
    model = words.random_weights or "sdxl"
    unet = unet_on_meta(model, getattr(torch, name))
    height, width = words.height or SIDE, words.width or SIDE
    for side, value in (("height", height), ("width", width)):
        check_size(side, value, VAE_SCALE * 2 ** (len(unet.config.block_out_channels) - 1))
    guided = words.guidance_scale > 1
    unet = fill(unet, device)
    inputs = real_inputs(unet, 2 if guided else 1, height // VAE_SCALE, width // VAE_SCALE, device)

    rows: list[dict[str, Any]] = [{"parallelism": STOCK, "ranks": 1}]
    calls: list[Callable[[], object]] = [lambda: unet(**inputs)]
    if words.compile:
        compiled = torch.compile(unet)
        rows.append({"parallelism": COMPILED, "ranks": 1})
        calls.append(lambda: compiled(**inputs))
    for row, config in _shares(words, counts, guided=guided):
        rows.append(row)
        calls.append(share_of_step(unet, config, row["ranks"], inputs, guided=guided))
    times_s = _in_turns(calls, device, warmups, times)
    for row, seconds in zip(rows, times_s, strict=True):
        row |= {"median_s": median(seconds), "min_s": min(seconds), "max_s": max(seconds)}
        row["share_of_diffusers"] = median(times_s[0]) / row["median_s"]
    return {
        "machine": {"device": device_name(device), "torch": torch.__version__, "threads": torch.get_num_threads()},
        "settings": {"model": model, "dtype": name, "height": height, "width": width, "guided": guided, "times": times},
        "rows": rows,
    }


def _shares(
    words: argparse.Namespace, counts: Sequence[int], *, guided: bool
) -> list[tuple[dict[str, Any], DistriConfig]]:
    """One rank alone, and then every count, method, mode and split that differs."""
    modes = [check_choice("mode", word.strip(), SyncMode) for word in words.mode.split(",")]
    splits = [word.strip() == "on" for word in words.split_batch.split(",")]
    found: dict[tuple[Any, ...], tuple[dict[str, Any], DistriConfig]] = {}
    for count in dict.fromkeys((1, *counts)):
        for word in words.parallelism.split(","):
            parallelism = check_choice("parallelism", word.strip(), Parallelism)
            if parallelism not in (Parallelism.PATCH, Parallelism.NAIVE_PATCH, Parallelism.TENSOR):
                raise ValueError(f"parallelism {parallelism} shares no step out; choose patch, naive_patch or tensor")
            for split in splits:
                apart = split and guided and count % 2 == 0
                for mode in modes if parallelism is Parallelism.PATCH and count > 1 + apart else modes[:1]:
                    row = {"parallelism": parallelism.value, "mode": mode.value, "ranks": count, "split_batch": apart}
                    config = DistriConfig(parallelism=parallelism, mode=mode, split_batch=apart)
                    found.setdefault(tuple(row.values()), (row, config))
    return list(found.values())


def _in_turns(calls: Sequence[Callable[[], object]], device: Any, warmups: int, times: int) -> list[list[float]]:
    from distri_engine.evaluation.share import seconds_of

    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(warmups + times):
        for call, some in zip(calls, seconds, strict=True):
            took = seconds_of(call, device)
            if number >= warmups:
                some.append(took)
    return seconds


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    machine, settings = report["machine"], report["settings"]
    lines = [
        f"{settings['model']} with random weights, {settings['dtype']}, {settings['width']} x {settings['height']}, "
        f"guidance {'on' if settings['guided'] else 'off'}; {machine['device']}, torch {machine['torch']}",
        f"seconds of a steady step of one rank, peers' data in place: median, least and most of {settings['times']}",
        "x: times as fast as diffusers' step on one device",
        "",
    ]
    cells = [["method", "mode", "guidance", "share of", "median", "min", "max", "x"]]
    for row in report["rows"]:
        branch = "-" if "split_batch" not in row else "split" if row["split_batch"] else "one batch"
        cells.append([row["parallelism"], row.get("mode", "-"), branch, str(row["ranks"])])
        cells[-1] += [f"{row[name]:.4f}" for name in ("median_s", "min_s", "max_s")]
        cells[-1].append(f"{row['share_of_diffusers']:.2f}")
    return "\n".join([*lines, *columns(cells, words=3)])
