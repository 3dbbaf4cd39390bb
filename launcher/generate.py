"""One picture from the command line: `make_picture` starts the ranks and waits, and this module run by torchrun is such
a rank. No hub and no page; how the picture is made is the engine's business.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distri_engine.bands import check_bands
from distri_engine.config import DistriConfig, TextEncoderOn, check_choice, check_size
from distri_engine.request import GenerationRequest
from distri_engine.telemetry import Event, Finished, StepDone
from launcher import png
from launcher.model import sizes
from launcher.options import resolve
from launcher.process import MakeEngine, die_with, die_with_agent, load_engine, reason
from launcher.report import StepFigures, make_report
from launcher.schema import as_config, as_parameters, as_request
from launcher.start import Place, make_run_dir, rank_environment, remove_run_dir, torchrun_command

RANK_MODULE = ("-m", "launcher.generate")
_KILLED = re.compile(r"rank +: (\d+) \(local_rank.*\n +exitcode +: -(\d+)")  # torchrun's summary


class Failed(RuntimeError):
    """The picture could not be made; the message is for people."""


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
    check_choice("text_encoder_on", text_encoder_on, TextEncoderOn)
    ranks, device, model = resolve(ranks, device, model)
    size, multiple = sizes(model)
    # The seed is drawn here, once for all ranks; a size that only the loaded model knows is filled in by them.
    resolved = request.resolved(default_size=size or multiple)
    request = resolved if size is not None else request.replace(seed=resolved.seed)
    for name in ("height", "width"):
        if (side := getattr(request, name)) is not None:
            check_size(name, side, multiple)
    check_bands(request, config, ranks, multiple)
    run_dir = make_run_dir()
    try:
        job: dict[str, Any] = {
            "request": as_parameters(request),
            "config": as_parameters(config),
            "output": str(output.resolve()),
        }
        job |= {"model": model, "device": device, "began": began, "text_encoder_on": text_encoder_on}
        (run_dir / "job.json").write_text(json.dumps(job))
        report = _run(
            run_dir, torchrun_command(run_dir, ranks, script, restarts=0), rank_environment(run_dir, ranks, device)
        )
        return report | {"image": str(output.with_name(Path(report["image"]).name))}  # as it was given
    finally:
        remove_run_dir(run_dir)


def check_target(file: Path, example: str) -> None:
    """Raise ValueError if `file` could not be written at the end."""
    try:
        if not file.parent.is_dir():
            raise ValueError(f"the folder {file.parent} does not exist; make it first")
        if file.is_dir():
            raise ValueError(f"{file} is a folder; give the name of a file, such as {file / example}")
    except OSError as error:
        raise ValueError(f"{str(file)[:200]} cannot be written: {error.strerror}; choose another name") from None
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ValueError(f"{file} cannot be written to; choose another place")


def _run(run_dir: Path, command: list[str], env: dict[str, str]) -> dict[str, Any]:
    log = run_dir / "log"
    with log.open("wb") as noise:
        agent = subprocess.Popen(command, env=env, stderr=noise, preexec_fn=partial(die_with, os.getpid()))
        try:
            code = agent.wait()
        except KeyboardInterrupt:
            agent.wait()  # it got the same Ctrl+C
            raise
    text = log.read_text(errors="replace")
    if killed := [(rank, number) for rank, number in _KILLED.findall(text) if int(number) != signal.SIGTERM]:
        rank, number = killed[0]  # what its peers say is only that it went away
        raise Failed(f"rank {rank} was killed by signal {number}; out of memory is the usual reason for 9")
    error = run_dir / "error.json"
    if error.exists():
        kind, message = json.loads(error.read_text())
        raise ValueError(message) if kind == "value" else Failed(message)
    if code:
        last = [line for line in text.splitlines() if line.strip()][-1:] or [f"exit code {code}"]
        raise Failed(f"the group ended before the picture was done: {last[0].strip()}")
    return dict(json.loads((run_dir / "report.json").read_text()))


def be_rank(make_engine: MakeEngine = load_engine) -> None:
    """One rank of the group that `make_picture` started."""
    die_with_agent()
    place = Place.here()
    job = json.loads((place.run_dir / "job.json").read_text())
    try:
        _make(place, job, make_engine)
    except Exception as error:
        try:  # the first error is the one that counts: it takes the other ranks with it
            with (place.run_dir / "error.json").open("x") as file:
                json.dump(["value" if isinstance(error, ValueError) else "other", reason(error)], file)
        except FileExistsError:
            pass
        raise


def _make(place: Place, job: dict[str, Any], make_engine: MakeEngine) -> None:
    import torch

    from distri_engine.mesh import resolve_device
    from launcher import group

    engine = make_engine(job["model"], job["device"], place.rank, place.world_size, job["text_encoder_on"])
    request = as_request(job["request"]).resolved(default_size=engine.info.default_size)
    config = as_config(job["config"]).replace(height=request.height, width=request.width)
    device = resolve_device(job["device"])
    mesh = group.join("generate", place.run_dir, rank=place.rank, world_size=place.world_size, device=device)
    engine.attach(mesh)
    startup = time.monotonic() - job["began"]

    steps, finished = _follow(engine.generate(request, config), show=place.rank == 0 and sys.stdout.isatty())
    figures = torch.tensor(
        [
            [
                s.phase == "stale",
                s.compute_ms,
                s.wait_ms,
                s.sent_bytes,
                s.evaluations,
                math.nan if s.change is None else s.change,
                s.memory_mb,
                s.buffer_mb,
            ]
            for s in steps
        ],
        dtype=torch.float64,
        device=mesh.wire_device,
    )
    everyone = [torch.empty_like(figures) for _ in range(place.world_size)]
    torch.distributed.all_gather(everyone, figures)
    if place.rank == 0:
        saving = time.perf_counter()
        about = {"model": engine.info.name, "device": engine.info.device}
        chunks = png.chunks(request, config, **about, ranks=place.world_size)
        paths = png.save_all(finished.images, Path(job["output"]), chunks)
        report = make_report(
            request=as_parameters(request),
            config=as_parameters(config),
            model=engine.info.name,
            device=job["device"],
            threads_per_rank=torch.get_num_threads(),
            startup_seconds=startup,
            seconds={**finished.seconds, "save": time.perf_counter() - saving},
            steps=[[_figures(*rank) for rank in step] for step in torch.stack(everyone, dim=1).tolist()],
            memory_mb=torch.stack(everyone)[..., -2].amax(dim=1).tolist(),
            buffer_mb=torch.stack(everyone)[..., -1].amax(dim=1).tolist(),
            image=str(paths[0]),
        )
        (place.run_dir / "report.json").write_text(json.dumps(report))
    engine.detach()
    group.leave()


def _follow(events: Iterator[Event], *, show: bool) -> tuple[list[StepDone], Finished]:
    steps = []
    for event in events:
        if isinstance(event, StepDone):
            steps.append(event)
            if show:
                print(f"\rstep {event.converged} / {event.steps} ", end="", flush=True)
        elif isinstance(event, Finished):
            if show:
                print("\r\033[K", end="", flush=True)
            return steps, event
    raise AssertionError("the engine's events end with Finished")


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
        change=None if math.isnan(change) else change,
    )


if __name__ == "__main__":
    be_rank()
