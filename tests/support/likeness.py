"""How near a way of sharing a picture comes to one device: PSNR of the final latents, median and worst of a few
prompts, with the embedded model on CPU ranks; and how long it takes, the configs interleaved prompt by prompt.

    python -m tests.support.likeness --ranks 4 --steps 20 --modes corrected_async_gn,stale_gn,extrapolated
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from tests.support.gang import run_on_ranks
from tests.support.models import DEMO_MODEL, PROMPTS

Job = tuple[dict[str, Any], dict[str, Any]]  # a request and a config, as parameters


@dataclass(frozen=True)
class Likeness:
    """What one config came to."""

    median: float  # dB
    worst: float  # dB
    seconds: float  # median, of denoising
    sync_steps: tuple[int, int]  # fewest and most


def pictures(jobs: list[Job]) -> list[tuple[torch.Tensor, float, int]]:
    """On a rank: final latents, seconds of denoising, and synchronous steps of every job."""
    import os

    from distri_engine import DistriConfig, Engine, GenerationRequest, open_mesh
    from distri_engine.telemetry import Finished, StepDone

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    engine = Engine(str(DEMO_MODEL), device="cpu", rank=rank, world_size=ranks)
    results = []
    with open_mesh(DistriConfig()) as mesh:
        engine.attach(mesh)
        for request, config in jobs:
            last, seconds, sync = torch.empty(0), 0.0, 0
            for event in engine.generate(GenerationRequest(**request), DistriConfig(**config), decode=False):
                if isinstance(event, StepDone):
                    last = last if event.latents is None else event.latents
                    sync += event.phase == "sync"
                elif isinstance(event, Finished):
                    seconds = event.seconds["denoise"]
            results.append((last, seconds, sync))
        engine.detach()
    return results


def psnr(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB; the peak is the range of `exact`."""
    error = float((ours.double() - exact.double()).square().mean())
    return 10 * math.log10(float(exact.max() - exact.min()) ** 2 / error) if error else math.inf


def likeness(
    ranks: int,
    configs: list[dict[str, Any]],
    *,
    prompts: int = 8,
    warmup_steps: int = 4,
    timed: bool = True,
    **request: Any,
) -> list[Likeness]:
    """Over the first `prompts` prompts, for each of `configs`. Who needs no seconds needs no `timed`: then nothing is
    made twice.
    """
    requests = [
        {"height": 256, "width": 256, "guidance_scale": 4.0, "prompt": prompt, "seed": seed, **request}
        for seed, prompt in enumerate(PROMPTS[:prompts])
    ]
    alone: list[Job] = [(one, {"parallelism": "single"}) for one in requests]
    together: list[Job] = [
        (one, {"split_batch": False, "warmup_steps": warmup_steps, **config}) for one in requests for config in configs
    ]
    exact = run_on_ranks(1, pictures, alone)[0]
    first = together[: len(configs)] if timed else []  # these warm up
    made = run_on_ranks(ranks, pictures, first + together)[0][len(first) :]
    rows = []
    for index in range(len(configs)):
        some = made[index :: len(configs)]
        values = [psnr(ours[0], one[0]) for ours, one in zip(some, exact, strict=True)]
        sync = [steps for _, _, steps in some]
        seconds = median(seconds for _, seconds, _ in some)
        rows.append(Likeness(median(values), min(values), seconds, (min(sync), max(sync))))
    return rows


def main() -> None:
    """Print one line a config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup-steps", type=int, default=4)
    parser.add_argument("--scheduler", default="ddim")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=8, help=f"at most {len(PROMPTS)}")
    parser.add_argument("--modes", default="corrected_async_gn,stale_gn,extrapolated")
    parser.add_argument("--configs", help="JSON list of DistriConfig fields, in place of --modes")
    words = parser.parse_args()
    configs = json.loads(words.configs) if words.configs else [{"mode": mode} for mode in words.modes.split(",")]
    rows = likeness(
        words.ranks,
        configs,
        warmup_steps=words.warmup_steps,
        prompts=words.prompts,
        steps=words.steps,
        scheduler=words.scheduler,
        height=words.size,
        width=words.size,
    )
    for config, row in zip(configs, rows, strict=True):
        name = " ".join(f"{name}={value}" for name, value in config.items())
        print(f"{words.ranks} ranks, {words.steps} steps, {words.scheduler}, {name}: ", end="")
        sync = "-".join(map(str, dict.fromkeys(row.sync_steps)))
        print(f"{row.median:.1f} / {row.worst:.1f} dB, {row.seconds:.2f} s, {sync} synchronous")


if __name__ == "__main__":
    main()
