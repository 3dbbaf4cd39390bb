"""One picture from the command line: `make_picture` starts the ranks and waits, and this module run by torchrun is such
a rank. No hub and no page; how the picture is made is the engine's business.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distri_engine.bands import check_bands
from distri_engine.config import DistriConfig, check_size
from distri_engine.request import GenerationRequest
from launcher import errand, png
from launcher.batch import follow
from launcher.files import check_target, is_stream, sweep
from launcher.model import sizes
from launcher.report import StepFigures, make_report
from launcher.schema import as_config, as_parameters, as_request

RANK_MODULE = ("-m", "launcher.generate")


def make_picture(
    request: GenerationRequest,
    config: DistriConfig,
    output: Path,
    *,
    ranks: int | None = None,
    device: str = "auto",
    model: str | None = None,
    text_encoder_on: str = "rank0",
    script: Sequence[str] = RANK_MODULE,
) -> dict[str, Any]:
    """Start a group for one picture, wait for it, and return the report.

    Raises ValueError, before anything is started, for what cannot work, and Failed if the group fails.
    """
    began = time.monotonic()
    check_target(output, "picture.png")
    if is_stream(output):
        raise ValueError(f"{output} is no file, and a picture becomes one; give the name of a file")
    crew = errand.Crew.resolved(ranks, device, model, text_encoder_on)
    request = fit(request, config, crew)
    if request.image is not None:
        request = request.replace(image=str(as_picture(request.image)))
    job = {"request": as_parameters(request), "config": as_parameters(config), "output": str(output.resolve())}
    try:
        report = errand.run(script, job, crew, began=began)
    finally:
        sweep(output.resolve().parent, output.resolve().name)  # nobody writes it any more
    return report | {"image": str(output.with_name(Path(report["image"]).name))}  # as it was given


def fit(request: GenerationRequest, config: DistriConfig, crew: errand.Crew) -> GenerationRequest:
    """`request` with a size and a seed. Raises ValueError if `crew` cannot make it.

    The seed is drawn here, once for all ranks; a size that only the loaded model knows is filled in by them.
    """
    size, multiple = sizes(crew.model)
    resolved = request.resolved(default_size=size or multiple)
    request = resolved if size is not None else request.replace(seed=resolved.seed)
    for name in ("height", "width"):
        if (side := getattr(request, name)) is not None:
            check_size(name, side, multiple)
    check_bands(request, config, crew.ranks, multiple)
    return request


def as_picture(name: str) -> Path:
    """The whole path of a picture file. Raises ValueError if there is none."""
    from PIL import Image

    try:
        with Image.open(name) as image:
            image.verify()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"{name[:200]} is no picture that can be read; give a PNG, JPEG or WebP file") from None
    return Path(name).resolve()


def make(work: errand.Errand) -> dict[str, Any] | None:
    """A rank's work: one picture, and on rank 0 its report."""
    import torch

    engine, mesh, job = work.engine, work.mesh, work.job
    request = as_request(job["request"]).resolved(default_size=engine.info.default_size)
    config = as_config(job["config"]).replace(height=request.height, width=request.width)
    steps, finished = follow(engine.generate(request, config), show=mesh.rank == 0 and sys.stdout.isatty())
    figures = torch.tensor(
        [
            [
                s.phase == "stale",
                s.compute_ms,
                s.wait_ms,
                s.sent_bytes,
                s.evaluations,
                _number(s.change),
                _number(s.load),
                s.memory_mb,
                s.buffer_mb,
            ]
            for s in steps
        ],
        dtype=torch.float64,
        device=mesh.wire_device,
    )
    everyone = [torch.empty_like(figures) for _ in range(mesh.size)]
    torch.distributed.all_gather(everyone, figures)
    if mesh.rank != 0:
        return None
    saving = time.perf_counter()
    shown = request if request.image is None else request.replace(image=Path(request.image).name)  # no folder of ours
    chunks = png.chunks(shown, config, model=engine.info.name, device=engine.info.device, ranks=mesh.size)
    paths = png.save_all(finished.images, Path(job["output"]), chunks)
    return make_report(
        request=as_parameters(request),
        config=as_parameters(config),
        model=engine.info.name,
        device=work.crew.device,
        threads_per_rank=torch.get_num_threads(),
        startup_seconds=work.startup_seconds,
        seconds={**finished.seconds, "save": time.perf_counter() - saving},
        steps=[[_figures(*rank) for rank in step] for step in torch.stack(everyone, dim=1).tolist()],
        memory_mb=torch.stack(everyone)[..., -2].amax(dim=1).tolist(),
        buffer_mb=torch.stack(everyone)[..., -1].amax(dim=1).tolist(),
        load_percent=[_known(load) for load in torch.stack(everyone)[:, -1, -3].tolist()],
        image=str(paths[0]),
    )


def _number(figure: float | None) -> float:
    """Tensors know no None."""
    return math.nan if figure is None else figure


def _known(figure: float) -> float | None:
    return None if math.isnan(figure) else figure


def _figures(
    stale: float,
    compute_ms: float,
    wait_ms: float,
    sent_bytes: float,
    evaluations: float,
    change: float,
    *_: float,
) -> StepFigures:
    return StepFigures(
        phase="stale" if stale else "sync",
        compute_ms=compute_ms,
        wait_ms=wait_ms,
        sent_bytes=int(sent_bytes),
        evaluations=int(evaluations),
        change=_known(change),
    )


if __name__ == "__main__":
    errand.be_rank(make)
