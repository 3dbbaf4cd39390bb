"""Measures a pipeline on captions that it has not seen: how often its pictures show what was asked for, by sampler, and
how far naive patches and DistriFusion are from one device. Prints a table and writes a JSON file.

    python -m assets.demo_training.measure --pipeline build/demo/pipeline --folder outputs/measured

What is shown is the judge's word (assets/demo_judge); pictures that are there already are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from assets.demo_training.held_out import described, held_out

ROOT = Path(__file__).resolve().parents[2]
JUDGE = ROOT / "assets" / "demo_judge" / "judge.safetensors"
NOTE = "made.json"  # beside pictures: how they were made
EQUAL = 100.0  # dB, of pictures without any difference: JSON has no infinity
QUESTIONS = ("subject", "colour", "time", "ground", "weather")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A row of the table: how its pictures are made."""

    title: str
    ranks: int = 1  # that make a picture together
    config: dict[str, Any] | None = None  # of DistriConfig; None: plain diffusers
    steps: int = 30
    scheduler: str = "ddim"


PAPER, EXTRAPOLATED = {"mode": "corrected_async_gn"}, {"mode": "extrapolated"}
NAIVE = {"parallelism": "naive_patch"}
RUNS = {
    "single": Run(title="one device"),
    "patch-2": Run(title="DistriFusion", ranks=2, config=PAPER),
    "patch-4": Run(title="DistriFusion", ranks=4, config=PAPER),
    "extrapolated-2": Run(title="DistriFusion, extrapolated", ranks=2, config=EXTRAPOLATED),
    "extrapolated-4": Run(title="DistriFusion, extrapolated", ranks=4, config=EXTRAPOLATED),
    "naive-2": Run(title="naive patches", ranks=2, config=NAIVE),
    "naive-4": Run(title="naive patches", ranks=4, config=NAIVE),
    "ddim-20": Run(title="DDIM, 20 steps", steps=20),
    "euler-20": Run(title="Euler, 20 steps", steps=20, scheduler="euler"),
    "dpm-20": Run(title="DPM-Solver++, 20 steps", steps=20, scheduler="dpm-solver"),
    "dpm-10": Run(title="DPM-Solver++, 10 steps", steps=10, scheduler="dpm-solver"),
}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure how well a demo pipeline follows its captions.")
    add_options(parser, count=200)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    return parser.parse_args(arguments)


def add_options(parser: argparse.ArgumentParser, count: int) -> None:
    """What is asked of every measurement."""
    parser.add_argument("--pipeline", type=Path, default=Path("assets/demo_model"))
    parser.add_argument(
        "--folder", type=Path, default=Path("outputs/measured"), help="pictures and table.json go there"
    )
    parser.add_argument("--count", type=int, default=count, help="captions (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="that share the captions where ranks do not")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=20, help="captions made at once")
    parser.add_argument("--judge", type=Path, default=JUDGE)


def make(options: argparse.Namespace, folder: Path, run: Run, captions: list[str], negative: str = "") -> None:
    """Make the pictures of a run that are not there yet. Ends the program if those that are were made otherwise."""
    task = {
        "pipeline": str(options.pipeline),
        "folder": str(folder),
        "captions": captions,
        "negative": negative,
        "steps": run.steps,
        "scheduler": run.scheduler,
        "height": options.size[0],
        "width": options.size[1],
        "batch": options.batch,
        "config": run.config,
    }
    from assets.demo_training.measured_pictures import Task

    keep_note(folder, {**dataclasses.asdict(Task(**task)), "model": digest(options.pipeline)})
    if all((folder / f"{index:04d}.png").exists() for index in range(len(captions))):
        return
    ranks = run.ranks if run.config else options.processes
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    words = [sys.executable, *torchrun, "-m", "assets.demo_training.measured_pictures", json.dumps(task)]
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"} | os.environ
    done = subprocess.run(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if re.match(r"(\[rank\d+\]: )?\S*(Error|Exception)", line)]
        sys.exit(f"error: no pictures for {folder}: {said[0] if said else f'exit code {done.returncode}'}")


def keep_note(folder: Path, task: dict[str, Any]) -> None:
    """Write down beside the pictures how they are made; what is there must have been made so."""
    note, pictures = folder / NOTE, sorted(folder.glob("*.png"))
    task = {name: value for name, value in task.items() if name not in ("folder", "batch", "pipeline")}
    if pictures:
        before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        different = [name for name in task if name != "captions" and before.get(name) != task[name]]
        old, new = before.get("captions", []), task["captions"]
        if different or old[: len(new)] != new[: len(old)]:
            what = ", ".join(different) or "captions"
            sys.exit(f"error: {folder} holds pictures that were made with other {what}; choose another --folder")
        task["captions"] = max(old, new, key=len)
    folder.mkdir(parents=True, exist_ok=True)
    write(note, task)


def digest(pipeline: Path) -> str:
    """Of all files of a pipeline folder but its card; an id is its own."""
    total = hashlib.sha256(b"" if pipeline.is_dir() else str(pipeline).encode())
    for file in sorted(file for file in pipeline.rglob("*") if file.is_file() and file.suffix != ".md"):
        total.update(f"{file.relative_to(pipeline)}\n".encode() + file.read_bytes())
    return total.hexdigest()


def row(options: argparse.Namespace, name: str, scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the judge says of a run's pictures, in percent, and their PSNR to one device's, in dB."""
    from distri_engine.evaluation.judge import judged, load_judge, right
    from distri_engine.evaluation.likeness import pixels, psnr

    files = [options.folder / name / f"{index:04d}.png" for index in range(len(scenes))]
    answers = judged(load_judge(options.judge), files).answers
    hits = {question: right(answers, scenes, question) for question in QUESTIONS}
    everything = [hit for some in hits.values() for hit in some]
    there = [answer["subjects"] for answer, scene in zip(answers, scenes, strict=True) if scene["subject"] != "none"]
    figures = {"attributes": share(everything), **{question: share(some) for question, some in hits.items()}}
    figures["doubled"] = share([count == "2+" for count in there])
    result: dict[str, Any] = {"run": name, **dataclasses.asdict(RUNS[name]), "of": len(scenes), **figures}
    alone = options.folder / "single"
    if RUNS[name].config and (alone / files[-1].name).exists():
        values = [min(EQUAL, psnr(pixels(file), pixels(alone / file.name))) for file in files]
        result |= {"psnr": round(median(values), 2), "worst": round(min(values), 2)}
    return result


def share(hits: list[bool]) -> float | None:
    """In percent; None if nothing was asked."""
    return round(100 * sum(hits) / len(hits), 1) if hits else None


def line(figures: dict[str, Any]) -> str:
    """A row in Markdown."""
    psnr = f"{figures['psnr']:.1f} / {figures['worst']:.1f}" if "psnr" in figures else "-"
    shares = ["-" if figures[name] is None else figures[name] for name in ("attributes", *QUESTIONS, "doubled")]
    cells = [figures["title"], figures["ranks"], *shares, psnr]
    return f"| {' | '.join(map(str, cells))} |"


def main(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make, judge, print, write."""
    pairs = held_out(options.count)
    scenes = [described(text, scene) for text, scene in pairs]
    print("| pictures of | ranks | attributes | subject | colour | time | ground | weather | doubled | PSNR, dB |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for name in options.runs:
        make(options, options.folder / name, RUNS[name], [text for text, _ in pairs])
        rows.append(row(options, name, scenes))
        print(line(rows[-1]), flush=True)
    content = {"size": list(options.size), "rows": rows}
    write(options.folder / "table.json", content)
    return rows


def write(file: Path, content: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writing = file.with_suffix(".tmp.json")
    writing.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    writing.replace(file)


if __name__ == "__main__":
    main(parse_options())
