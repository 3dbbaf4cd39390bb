"""`python -m launcher benchmark --share-of 2,4,8 --random-weights sdxl`: what one of so many ranks computes in a step
and in the decode, timed on one device, without peers and without trained weights. How that is done is the engine's
evaluation package's business; here is what is asked for, and the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

from distri_engine.config import DistriConfig, Parallelism, SyncMode, check_choice, check_int, check_size
from launcher.columns import columns
from launcher.options import number, rank_counts, resolve, switches

DTYPES = ("float16", "bfloat16", "float32")
SIDE = 1024  # pixels, unless asked otherwise
STOCK = "diffusers"
WHOLE, BLOCKS = "whole", "blocks"  # what torch.compile is given
STEP, DECODE = "step", "decode"
OWN = ("random_weights", "sizes", "dtype", "compile", "cuda_graph")  # options that mean nothing without --share-of
USED = (  # and those that mean something with it; why --model does not is said in `measure`
    *("share_of", "model", "device", "height", "width", "guidance_scale", "parallelism", "mode", "split_batch"),
    *("warmup_times", "test_times", "threads_per_rank", "json", *OWN),
)
Timed = tuple[dict[str, Any], Callable[[], object]]  # a row of the table, and what it times


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the benchmark command understands beside its own options."""
    group = parser.add_argument_group("one rank's share, on one device, with random weights, in place of pictures")
    group.add_argument("--share-of", metavar="LIST", help="time a step and a decode by one of so many ranks: 2,4,8")
    group.add_argument("--random-weights", metavar="MODEL", help="sdxl, sd15 or a model folder (default: sdxl)")
    group.add_argument("--sizes", metavar="LIST", help=f"sides of square pictures, in pixels (default: {SIDE})")
    group.add_argument("--dtype", help=f"of {', '.join(DTYPES)} (default: float16 on a GPU, else float32)")
    group.add_argument(
        "--compile",
        nargs="?",
        const=f"{WHOLE},{BLOCKS}",
        metavar="LIST",
        help="also time diffusers' UNet with torch.compile: the whole, its transformer blocks alone, or both (default)",
    )
    group.add_argument("--cuda-graph", default="on,off", metavar="LIST", help="of on, off (default: both, on a GPU)")


def measure(words: argparse.Namespace) -> dict[str, Any]:
    """The figures as they go into JSON. Raises ValueError for what makes no sense."""
    import torch

    from distri_engine.evaluation.models import VAE_SCALE, unet_on_meta, vae_on_meta
    from distri_engine.evaluation.share import fill
    from distri_engine.mesh import device_name, resolve_device

    counts = list(dict.fromkeys((1, *rank_counts(words.share_of))))
    _, kind, _ = resolve(1, words.device, None)
    device = resolve_device(kind)
    name = words.dtype or ("float16" if device.type == "cuda" else "float32")
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; choose one of: {', '.join(DTYPES)}")
    times = check_int("test_times", words.test_times, 1, 10_000)
    warmups = check_int("warmup_times", words.warmup_times, 0, 10_000)
    if device.type == "cpu":
        torch.set_num_threads(check_int("threads_per_rank", words.threads_per_rank or 1, 1, 1024))
    compiled = _compiled(words.compile)
    graphs = switches("cuda_graph", words.cuda_graph) if device.type == "cuda" else [False]
    guided = words.guidance_scale > 1
    if words.model is not None:
        raise ValueError(
            f"--model {words.model[:200]} has no use with --share-of, which takes a model's shapes and random weights; "
            "name it by --random-weights"
        )
    model = words.random_weights or "sdxl"
    unet, vae = (open_(model, getattr(torch, name)) for open_ in (unet_on_meta, vae_on_meta))
    sizes = _sizes(words)
    for size in sizes:
        for side, value in zip(("height", "width"), size, strict=True):
            check_size(side, value, VAE_SCALE * 2 ** (len(unet.config.block_out_channels) - 1))
    configs = list(_configs(words, counts, graphs, guided=guided))
    unet, vae = fill(unet, device), fill(vae, device)

    rows: list[dict[str, Any]] = []
    for height, width in sizes:
        cells = height // VAE_SCALE, width // VAE_SCALE
        steps = _steps(unet, configs, compiled, cells, device, guided=guided)
        rows += _timed(steps, (height, width), device, warmups, times)
        rows += _timed(_decodes(vae, counts, cells, device), (height, width), device, warmups, times)
    return {
        "machine": {"device": device_name(device), "torch": torch.__version__, "threads": torch.get_num_threads()},
        "settings": {
            "model": model,
            "dtype": name,
            "decode_dtype": str(vae.dtype).removeprefix("torch."),
            "guided": guided,
            "times": times,
        },
        "rows": rows,
    }


def _sizes(words: argparse.Namespace) -> list[tuple[int, int]]:
    """Heights and widths."""
    if words.sizes is None:
        return [(words.height or SIDE, words.width or SIDE)]
    if words.height or words.width:
        raise ValueError("--sizes and --height or --width say the same twice; leave one of them out")
    sides = [number(word.strip(), int) for word in words.sizes.split(",")]
    if wrong := [side for side in sides if not isinstance(side, int)]:
        raise ValueError(f"sizes {wrong[0]!r} is not a number of pixels; write 1024,2048,3840")
    return [(side, side) for side in dict.fromkeys(sides)]


def _compiled(text: str | None) -> list[str]:
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if unknown := [part for part in parts if part not in (WHOLE, BLOCKS)]:
        raise ValueError(f"unknown compile {unknown[0]!r}; choose of: {WHOLE}, {BLOCKS}")
    return list(dict.fromkeys(parts))


def _configs(
    words: argparse.Namespace, counts: Sequence[int], graphs: Sequence[bool], *, guided: bool
) -> Iterator[tuple[dict[str, Any], DistriConfig]]:
    """Every count, method, mode, split and way of launching that differs."""
    modes = [check_choice("mode", word.strip(), SyncMode) for word in words.mode.split(",")]
    splits = switches("split_batch", words.split_batch)
    methods = [check_choice("parallelism", word.strip(), Parallelism) for word in words.parallelism.split(",")]
    seen: set[tuple[Any, ...]] = set()
    for count in counts:
        for parallelism in methods:
            if parallelism not in (Parallelism.PATCH, Parallelism.NAIVE_PATCH, Parallelism.TENSOR):
                raise ValueError(f"parallelism {parallelism} shares no step out; choose patch, naive_patch or tensor")
            for split in splits:
                apart = split and guided and count % 2 == 0
                for mode in modes if parallelism is Parallelism.PATCH and count > 1 + apart else modes[:1]:
                    for graph in graphs:
                        row: dict[str, Any] = {
                            "parallelism": parallelism.value,
                            "mode": mode.value,
                            "split_batch": apart,
                        }
                        row |= {"ranks": count, "cuda_graph": graph}
                        if tuple(row.values()) in seen:
                            continue
                        seen.add(tuple(row.values()))
                        yield (
                            row,
                            DistriConfig(parallelism=parallelism, mode=mode, split_batch=apart, use_cuda_graph=graph),
                        )


def _steps(
    unet: Any,
    configs: Sequence[tuple[dict[str, Any], DistriConfig]],
    compiled: Sequence[str],
    cells: tuple[int, int],
    device: Any,
    *,
    guided: bool,
) -> list[Timed]:
    """diffusers' own step first, then compiled ones, then those of our ranks."""
    import torch

    from distri_engine.evaluation.share import compiled_blocks, real_inputs, share_of_step

    inputs = real_inputs(unet, 2 if guided else 1, *cells, device)
    timed: list[Timed] = [({"parallelism": STOCK, "ranks": 1}, partial(unet, **inputs))]
    for part in compiled:
        other = torch.compile(unet) if part == WHOLE else compiled_blocks(unet)
        timed.append(({"parallelism": STOCK, "compiled": part, "ranks": 1}, partial(other, **inputs)))
    for row, config in configs:
        timed.append((dict(row), share_of_step(unet, config, row["ranks"], inputs, guided=guided)))
    return [({"part": STEP} | row, call) for row, call in timed]


def _decodes(vae: Any, counts: Sequence[int], cells: tuple[int, int], device: Any) -> list[Timed]:
    """diffusers' own decode of one picture first, then that of one rank of so many."""
    import torch

    from distri_engine.evaluation.share import share_of_decode

    generator = torch.Generator(device).manual_seed(2)
    z = torch.randn(1, vae.config.latent_channels, *cells, generator=generator, device=device).to(vae.dtype)
    timed: list[Timed] = [({"part": DECODE, "parallelism": STOCK, "ranks": 1}, partial(vae.decode, z))]
    for count in counts:
        row = {"part": DECODE, "parallelism": Parallelism.PATCH.value, "ranks": count}
        with torch.no_grad():
            timed.append((row, share_of_decode(vae, count, z)))
    return timed


def _timed(
    calls: Sequence[Timed], size: tuple[int, int], device: Any, warmups: int, times: int
) -> Iterator[dict[str, Any]]:
    """The rows with their times, taken in turns; the first one is what the others are compared with."""
    from distri_engine.evaluation.share import seconds_of

    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(warmups + times):
        for (_, call), some in zip(calls, seconds, strict=True):
            took = seconds_of(call, device)
            if turn >= warmups:
                some.append(took)
    for (row, _), some in zip(calls, seconds, strict=True):
        yield row | {
            "height": size[0],
            "width": size[1],
            "median_s": median(some),
            "min_s": min(some),
            "max_s": max(some),
            "times_diffusers": median(seconds[0]) / median(some),
        }


def table(report: dict[str, Any]) -> str:
    """The report for people: a table a size."""
    machine, settings = report["machine"], report["settings"]
    lines = [
        f"{settings['model']} with random weights, {settings['dtype']} (decode: {settings['decode_dtype']}), guidance "
        f"{'on' if settings['guided'] else 'off'}; {machine['device']}, torch {machine['torch']}",
        "seconds of a steady step, and of a decode, of one rank, peers' data in place: median, least and most of "
        f"{settings['times']}",
        "x: times as fast as diffusers on one device",
    ]
    for height, width in dict.fromkeys((row["height"], row["width"]) for row in report["rows"]):
        cells = [["part", "method", "mode", "guidance", "launched by", "share of", "median", "min", "max", "x"]]
        cells += [_cells(row) for row in report["rows"] if (row["height"], row["width"]) == (height, width)]
        lines += ["", f"{width} x {height}", *columns(cells, words=5)]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    branch = "-" if "split_batch" not in row else "split" if row["split_batch"] else "one batch"
    launched = f"compiled, {row['compiled']}" if "compiled" in row else "a graph" if row.get("cuda_graph") else "Python"
    return [
        *(row["part"], row["parallelism"], row.get("mode", "-"), branch, launched, str(row["ranks"])),
        *(f"{row[name]:.4f}" for name in ("median_s", "min_s", "max_s")),
        f"{row['times_diffusers']:.2f}",
    ]
