"""Measures and draws the README's plots: speed-up over ranks, and likeness to one device over warm-up steps. The
figures stay beside the plots, so that they can be drawn again without being measured again.

    python -m tests.support.plots           # measure (a quarter of an hour on two cores), then draw
    python -m tests.support.plots --draw    # draw what was measured last
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support.likeness import likeness
from tests.support.models import DEMO_MODEL
from tests.support.real_app import ROOT

FIGURES = ROOT / "assets" / "readme" / "plots.json"
PLOT = ROOT / "assets" / "readme" / "plots.svg"

SIDES = (256, 512)
RANKS = (1, 2, 4)
WARMUPS = (0, 1, 2, 4, 8)
MODES = {
    "corrected_async_gn": "corrected_async_gn (the paper's)",
    "stale_gn": "stale_gn",
    "extrapolated": "extrapolated",
}
STEPS, PROMPTS = 20, 6
INKS = ("#7c3aed", "#0891b2", "#d97706")  # the page's first device colours, dark enough for lines on white


def speedups(side: int) -> dict[str, Any]:
    """Seconds a picture by rank count, patches with both guidance branches on every rank; one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "benchmark.json")
        command = [sys.executable, "-m", "launcher", "benchmark", "--model", str(DEMO_MODEL), "--device", "cpu"]
        command += ["--height", str(side), "--width", str(side), "--steps", str(STEPS), "--split-batch", "off"]
        command += ["--ranks", ",".join(map(str, RANKS)), "--threads-per-rank", "1", "--json", str(report)]
        command += ["--warmup-times", "1", "--test-times", "6"]
        subprocess.run(command, check=True, cwd=ROOT)
        rows = json.loads(report.read_text())["rows"]
    patches = {row["ranks"]: row["median_s"] for row in rows if row["parallelism"] == "patch"}
    return {"patch": patches, "diffusers": next(r["median_s"] for r in rows if r["parallelism"] == "diffusers")}


def qualities(ranks: int) -> dict[str, list[tuple[float, float]]]:
    """PSNR of the final latents in dB, (median, worst) over prompts, by mode and warm-up."""
    found = {}
    for mode in MODES:
        rows = likeness(
            ranks,
            [{"mode": mode, "warmup_steps": warmup} for warmup in WARMUPS],
            prompts=PROMPTS,
            steps=STEPS,
            scheduler="ddim",
        )
        found[mode] = [(row.median, row.worst) for row in rows]
    return found


def measure() -> dict[str, Any]:
    """All figures."""
    return {
        "speed": {str(side): speedups(side) for side in SIDES},
        "quality": {str(ranks): qualities(ranks) for ranks in (2, 4)},
    }


def draw(figures: dict[str, Any]) -> None:
    """Write the plot."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "plots", "font.size": 9, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
    from matplotlib import pyplot

    figure, (speed, *likenesses) = pyplot.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    for ink, (side, row) in zip(INKS, figures["speed"].items(), strict=False):
        seconds = {int(ranks): value for ranks, value in row["patch"].items()}
        speed.plot(
            list(seconds), [seconds[1] / value for value in seconds.values()], "o-", color=ink, label=f"{side} x {side}"
        )
    speed.plot(RANKS, RANKS, ":", color="grey", label="as many times faster as ranks")
    speed.axvspan(2, max(RANKS), color="grey", alpha=0.08, lw=0)
    speed.text(3, 2.3, "more ranks\nthan cores", ha="center", color="grey")
    speed.set(title="A picture's speed-up over one rank", xlabel="ranks, on two cores", xticks=RANKS, ylim=(0, 2.6))
    speed.legend(frameon=False, loc="lower left")
    for axes, (ranks, rows) in zip(likenesses, figures["quality"].items(), strict=True):
        for ink, (mode, values) in zip(INKS, rows.items(), strict=True):
            medians, worsts = zip(*values, strict=True)
            axes.plot(WARMUPS, medians, "o-", color=ink, label=MODES[mode])
            axes.plot(WARMUPS, worsts, ":", color=ink)
        axes.set(title=f"Likeness to one device, {ranks} ranks", xlabel=f"warm-up steps, of {STEPS}", xticks=WARMUPS)
        axes.set(ylabel="PSNR of the latents, dB", ylim=(0, 65))
    likenesses[0].legend(
        frameon=False, loc="lower right", title="median (dotted: worst) of 6 prompts", title_fontsize=8
    )
    figure.savefig(PLOT, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Measure unless told not to, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="do not measure again")
    if not parser.parse_args().draw:
        FIGURES.write_text(json.dumps(measure(), indent=1) + "\n")
    draw(json.loads(FIGURES.read_text()))
    print(PLOT)


if __name__ == "__main__":
    main()
