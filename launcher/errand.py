"""An errand: a group of ranks is started for one piece of work and ends with it. Here is what errands share: what the
command hands over, the engine that each rank brings, and what comes back. The work itself is the command's business.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from distri_engine.config import TextEncoderOn, check_choice
from launcher.batch import check_group, noting_errors, start_group
from launcher.options import resolve
from launcher.process import MakeEngine, die_with_agent, load_engine
from launcher.start import Place, make_run_dir, remove_run_dir

if TYPE_CHECKING:
    from distri_engine.engine import Engine
    from distri_engine.mesh import Mesh

_WATCH_S = 1.0
_END_S = 6.0  # torchrun gives its ranks 3 s to end


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who goes on an errand."""

    ranks: int
    device: str  # cpu, cuda
    model: str  # folder or Hugging Face id
    text_encoder_on: str = TextEncoderOn.RANK0.value  # or "all"

    @classmethod
    def resolved(cls, ranks: int | None, device: str, model: str | None, text_encoder_on: str) -> Crew:
        """Numbers and names for what was left open. Raises ValueError if this machine cannot do it."""
        check_choice("text_encoder_on", text_encoder_on, TextEncoderOn)
        ranks, device, model = resolve(ranks, device, model)
        return cls(ranks=ranks, device=device, model=model, text_encoder_on=text_encoder_on)


@dataclass(frozen=True, kw_only=True)
class Errand:
    """What a rank works with."""

    job: Mapping[str, Any]  # as the command gave it to `run`
    crew: Crew
    engine: Engine  # attached to the mesh
    mesh: Mesh
    startup_seconds: float  # since the command began


Work = Callable[[Errand], dict[str, Any] | None]  # what every rank does; rank 0 returns what the command gets


def run(
    script: Sequence[str],
    job: Mapping[str, Any],
    crew: Crew,
    *,
    began: float,
    watch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Start a process of `script` for each rank, which calls `be_rank`, wait for their end, and return what rank 0's
    work returned. `job` is JSON; `began` is when the command began, by time.monotonic; `watch` is called every second.

    Raises ValueError for what the ranks found wrong with the job, and Failed if the group fails. No process is left.
    """
    run_dir = make_run_dir()
    try:
        (run_dir / "job.json").write_text(json.dumps({"job": job, "crew": asdict(crew), "began": began}))
        agent = start_group(run_dir, crew.ranks, crew.device, script)
        check_group(run_dir, _wait(agent, watch))
        return dict(json.loads((run_dir / "result.json").read_text()))
    finally:
        remove_run_dir(run_dir)


def _wait(agent: subprocess.Popen[bytes], watch: Callable[[], None] | None) -> int:
    """The exit code of the group's agent."""
    try:
        while True:
            try:
                return agent.wait(None if watch is None else _WATCH_S)
            except subprocess.TimeoutExpired:
                assert watch is not None
                watch()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            with suppress(subprocess.TimeoutExpired):
                agent.wait(_END_S)  # it got the same Ctrl+C, unless the signal was for this process alone
        agent.terminate()  # it ends its ranks first: nobody writes where we clean up
        try:
            agent.wait(_END_S)
        except subprocess.TimeoutExpired:
            agent.kill()  # its ranks die with it
            agent.wait()
        raise


def be_rank(work: Work, make_engine: MakeEngine = load_engine) -> None:
    """One rank of the group that `run` started: load the engine, meet the others, work, leave."""
    die_with_agent()
    place = Place.here()
    with noting_errors(place.run_dir):
        result = _work(work, place, make_engine)
        if place.rank == 0:
            (place.run_dir / "result.json").write_text(json.dumps(result))


def _work(work: Work, place: Place, make_engine: MakeEngine) -> dict[str, Any] | None:
    from distri_engine.mesh import resolve_device
    from launcher import group

    setting = json.loads((place.run_dir / "job.json").read_text())
    crew = Crew(**setting["crew"])
    engine = make_engine(crew.model, crew.device, place.rank, place.world_size, crew.text_encoder_on)
    device = resolve_device(crew.device)
    mesh = group.join("errand", place.run_dir, rank=place.rank, world_size=place.world_size, device=device)
    engine.attach(mesh)
    startup = time.monotonic() - setting["began"]
    result = work(Errand(job=setting["job"], crew=crew, engine=engine, mesh=mesh, startup_seconds=startup))
    engine.detach()
    group.leave()
    return result
