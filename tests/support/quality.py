"""Makes the README's table of quality: the held-out captions of the embedded model by every method, measured and
printed as Markdown. Runs that were cut off go on.

    python -m tests.support.quality [folder]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from tests.support.models import DEMO_MODEL
from tests.support.real_app import ROOT

CAPTIONS = ROOT / "assets" / "demo_captions"
RUNS = {
    "single": ("one device", 1, ["--parallelism", "single"]),
    "patch-2": ("DistriFusion", 2, []),
    "patch-4": ("DistriFusion", 4, []),
    "extrapolated-2": ("extrapolated", 2, ["--mode", "extrapolated"]),
    "extrapolated-4": ("extrapolated", 4, ["--mode", "extrapolated"]),
    "naive-2": ("naive patches", 2, ["--parallelism", "naive_patch"]),
    "naive-4": ("naive patches", 4, ["--parallelism", "naive_patch"]),
    "tensor-2": ("tensor parallel", 2, ["--parallelism", "tensor"]),
    "paradigms-2": ("ParaDiGMS", 2, ["--parallelism", "paradigms"]),
}


def launcher(*words: object) -> None:
    """One command of ours."""
    subprocess.run([sys.executable, "-m", "launcher", *map(str, words)], check=True, cwd=ROOT)


def figures(folder: Path, other: Path, *options: object) -> dict[str, dict[str, Any]]:
    """What `metrics` says of two folders, by metric."""
    file = folder.with_name(f"{folder.name}-{other.name}.json")
    launcher("metrics", folder, other, "--judge", *options, "--json", file)
    return {row["metric"]: row for row in json.loads(file.read_text())["rows"]}


def row(name: str, runs: Path) -> str:
    """One line of the table."""
    title, ranks, options = RUNS[name]
    folder = runs / name
    launcher(
        "coco", "--captions", CAPTIONS / "captions.txt", "--output", folder, "--model", DEMO_MODEL, "--device", "cpu",
        "--steps", 20, "--height", 256, "--width", 256, "--no-split-batch", "--ranks", ranks, *options,
    )  # fmt: skip
    truth = figures(folder, CAPTIONS / "pictures", "--is-gt")
    psnr, ssim = "-", "-"
    if name != "single":
        pairs = figures(folder, runs / "single")
        psnr = (
            "equal"
            if pairs["PSNR"]["value"] is None
            else f"{pairs['PSNR']['value']:.1f} / {pairs['PSNR']['worst']:.1f}"
        )
        ssim = f"{pairs['SSIM']['value']:.3f}"
    distance = next(figure for metric, figure in truth.items() if metric.startswith("Fréchet"))
    lines = map(json.loads, (folder / "seconds.jsonl").read_text().splitlines())
    seconds = [sum(line[stage] for stage in ("text", "denoise", "decode")) for line in lines]
    cells = [title, ranks, psnr, ssim, f"{distance['value']:.2f}", f"{truth['attributes right']['value']:.0f} %"]
    cells += [f"{truth['doubled subjects']['value']:.0f} %", f"{median(seconds):.2f}"]
    return f"| {' | '.join(map(str, cells))} |"


def main(runs: Path) -> None:
    """Print the table, a line as soon as it is there."""
    runs.mkdir(parents=True, exist_ok=True)
    lines = [row(name, runs) for name in RUNS]
    print("| method | ranks | PSNR, dB | SSIM | Fréchet (judge) | attributes right | doubled subjects | seconds |")
    print("|---|---|---|---|---|---|---|---|", *lines, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "outputs" / "quality")
