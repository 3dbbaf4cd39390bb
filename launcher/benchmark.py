"""`python -m launcher benchmark`: how long pictures take in several ways, measured in turns in one run, as a table and
as JSON. Here is what is asked for, what is refused, and the report; processes and arithmetic have modules of their own.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distri_engine.config import DistriConfig, Parallelism, SyncMode, check_int
from distri_engine.request import GenerationRequest
from launcher import errand, share
from launcher.benchmark_crew import BenchmarkCrew
from launcher.benchmark_report import machine, report_rows
from launcher.benchmark_rounds import Measuring, in_turns
from launcher.benchmark_rows import STOCK, Row, Wish, engine_rows, stock_rows
from launcher.benchmark_table import table
from launcher.benchmark_worker import Loading
from launcher.files import check_target, write_json
from launcher.generate import fit
from launcher.options import (
    add_loading_options,
    choices,
    given,
    number,
    rank_counts,
    refuse_ignored,
    switches,
    usable_cores,
)
from launcher.picture_options import add_request_options, request_of

DESCRIPTION = """\
How long pictures take: every way of making one that is asked for, and diffusers itself, in turns on the same machine.
One group of ranks and one process with diffusers are loaded once; those whose turn it is not sleep. A picture's clock
runs in the process that makes it, from having the request to having the PNG file (or the latents). A step is as long as
the slowest rank takes; steady steps are the stale ones, or where there are none those after the first, and the rank
that waits most is the one whose wait is shown. Speed-ups are ratios of the medians of this run: over one rank, and over
diffusers with as many threads as one rank has. Efficiency is the speed-up over one rank, divided by the ranks."""
PROMPT = "a red house with a blue roof in a snowy field"
OUTPUTS = ("latent", "pil")  # without and with the VAE
BASELINES = (STOCK, "none")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    config, measuring = DistriConfig(), Measuring()  # for the defaults
    parser.description = DESCRIPTION
    parser.add_argument(
        "--parallelism", default="patch", metavar="LIST", help=f"of {', '.join(Parallelism)} (default: %(default)s)"
    )
    parser.add_argument(
        "--mode", default=config.mode.value, metavar="LIST", help=f"of {', '.join(SyncMode)} (default: %(default)s)"
    )
    parser.add_argument("--ranks", metavar="LIST", help="rank counts (default: 1, and one a GPU, else 1,2)")
    parser.add_argument(
        "--split-batch",
        default="on",
        metavar="LIST",
        help="of on, off: the guidance branches on ranks of their own (default: %(default)s)",
    )
    parser.add_argument(
        "--no-split-batch", dest="split_batch", action="store_const", const="off", help="as --split-batch off"
    )
    parser.add_argument(
        "--warmup-steps", default=str(config.warmup_steps), metavar="N|auto", help="of patch (default: %(default)s)"
    )
    parser.add_argument("--prompt", default=PROMPT, help="(default: %(default)s)")
    add_request_options(parser, steps=50)
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--output-type", default="pil", help="pil, down to the PNG file (default), or latent: no VAE")
    parser.add_argument("--baseline", default=STOCK, help=f"{' or '.join(BASELINES)} (default: %(default)s)")
    for name, kind, text in (
        ("warmup-times", int, "rounds that are not counted"),
        ("test-times", int, "rounds that are"),
        ("ignore-ratio", float, "share of them that is left out, half of it the fastest, half of it the slowest"),
    ):
        default = getattr(measuring, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="end by then, with fewer rounds if need be (default: no limit)")
    parser.add_argument(
        "--threads-per-rank", type=int, help="CPU threads of every rank (default: cores / the largest rank count)"
    )
    add_loading_options(parser)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="leave the last picture of every row there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    share.add_options(parser)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that is decided before a process is started."""

    rows: Sequence[Row]
    request: GenerationRequest  # without a size, if only the loaded model knows it
    measuring: Measuring
    loading: Loading
    ranks: int  # of the group: the most that a row needs
    pictures: Path | None  # folder for the last picture of every row


def run(words: argparse.Namespace) -> None:
    """Check, measure, print. Raises ValueError for what makes no sense, Failed if a process ends early."""
    if words.json is not None:
        check_target(words.json, "benchmark.json")
    names = given(words, add_options)
    if words.share_of is None:
        refuse_ignored("benchmark without --share-of", [name for name in names if name in share.OWN])
    else:
        refuse_ignored("--share-of", [name for name in names if name not in share.USED])
    report = measure(plan(words)) if words.share_of is None else share.measure(words)
    if words.json is not None:
        write_json(report, words.json)
    print(table(report) if words.share_of is None else share.table(report))


def plan(words: argparse.Namespace) -> Plan:
    """What the options ask for. Raises ValueError for what cannot work."""
    measuring = Measuring(**{field.name: getattr(words, field.name) for field in fields(Measuring)})
    for name, choice, known in (
        ("output type", words.output_type, OUTPUTS),
        ("baseline", words.baseline, BASELINES),
    ):
        if choice not in known:
            raise ValueError(f"unknown {name} {choice!r}; choose one of: {', '.join(known)}")
    _check_folder(words.pictures, words.output_type)
    counts = None if words.ranks is None else rank_counts(words.ranks)
    most = None if counts is None else max(counts)
    crew = errand.Crew.resolved(most, words.device, words.model, words.text_encoder_on)
    threads = words.threads_per_rank
    if threads is None:
        threads = max(1, usable_cores() // crew.ranks)
    check_int("threads_per_rank", threads, 1, 1024)

    request = request_of(words, prompt=words.prompt, seed=words.seed)
    wish = Wish(
        methods=choices("parallelism", words.parallelism, Parallelism),
        modes=choices("mode", words.mode, SyncMode),
        splits=switches("split_batch", words.split_batch),
        ranks=counts or sorted({1, crew.ranks}),
    )
    ours = engine_rows(wish, request, DistriConfig(warmup_steps=number(words.warmup_steps, int)), threads)
    for row in ours:
        assert row.config is not None
        request = fit(request, row.config, crew)
    return Plan(
        rows=[*(stock_rows(threads, usable_cores()) if words.baseline == STOCK else []), *ours],
        request=request,
        measuring=measuring,
        loading=Loading(
            model=crew.model,
            device=crew.device,
            text_encoder_on=crew.text_encoder_on,
            threads=threads,
            decode=words.output_type != "latent",
        ),
        ranks=max(row.ranks for row in ours),
        pictures=words.pictures,
    )


def measure(plan: Plan) -> dict[str, Any]:
    """Start everybody, measure all rows in turns, and report. Raises ValueError or Failed if a process ends early."""
    began, load = time.monotonic(), os.getloadavg()[0]
    stock = any(row.config is None for row in plan.rows)
    with BenchmarkCrew(ranks=plan.ranks, stock=stock, loading=plan.loading, pictures=plan.pictures) as crew:
        request = plan.request.resolved(default_size=crew.hellos[0]["default_size"])
        runs = in_turns(crew, plan.rows, request, plan.measuring, began)
        hellos = [crew.hellos[rank] for rank in range(plan.ranks)]
    config = plan.rows[-1].config
    assert config is not None
    return {
        "machine": machine(hellos, threads=plan.loading.threads, load=load),
        "settings": {
            "model": hellos[0]["model"],
            "device": plan.loading.device,
            **{name: getattr(request, name) for name in ("prompt", "height", "width", "steps", "guidance_scale")},
            "scheduler": request.scheduler.value,
            "seed": request.seed,
            "warmup_steps": config.warmup_steps,
            "output_type": OUTPUTS[plan.loading.decode],
            **asdict(plan.measuring),
        },
        "rounds": len(runs[0]),
        "took_s": round(time.monotonic() - began, 1),
        "rows": report_rows(plan.rows, runs, plan.measuring.ignore_ratio),
    }


def _check_folder(folder: Path | None, output_type: str) -> None:
    if folder is None:
        return
    if output_type == "latent":
        raise ValueError("--pictures needs pictures, and --output-type latent makes none; leave one of them out")
    check_target(folder / "picture.png", "picture.png")
