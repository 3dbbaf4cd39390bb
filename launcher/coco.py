"""`python -m launcher coco`: a folder of pictures, one a caption, by the paper's protocol. The command starts one group
of ranks and watches; this module run by torchrun is such a rank. Captions are the business of evaluation/coco.py, the
folder that of picture_folder.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distri_engine.config import DistriConfig
from distri_engine.evaluation.coco import COUNT, Caption, part, read_captions
from distri_engine.request import GenerationRequest
from launcher import errand, png
from launcher import picture_folder as pictures
from launcher.batch import Failed, follow
from launcher.files import check_target, write_json
from launcher.generate import fit
from launcher.model import DEMO_MODEL
from launcher.options import add_group_options, named
from launcher.picture_options import add_picture_options, config_of, request_of
from launcher.schema import as_config, as_parameters, as_request

RANK_MODULE = ("-m", "launcher.coco")
STEPS = 50  # of the protocol
_OWN = ("prompt", "seed", "images")  # of a request: what every picture has for itself


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to make, and where."""

    captions: tuple[Caption, ...]
    split: Sequence[int] | None  # which part of them; None: all
    folder: Path
    request: GenerationRequest  # prompt and seed are each caption's own
    config: DistriConfig
    crew: errand.Crew

    def __post_init__(self) -> None:
        for index, caption in enumerate(self.captions):
            try:
                self.request.replace(prompt=caption.text, seed=index)
            except ValueError as error:
                raise ValueError(f"{caption.where}: {error}") from None

    @property
    def indices(self) -> range:
        """The captions of this part."""
        return part(len(self.captions), self.split)

    @property
    def texts(self) -> list[str]:
        return [caption.text for caption in self.captions]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the pictures, as run.json has it."""
        request = {name: value for name, value in as_parameters(self.request).items() if name not in _OWN}
        model = "embedded demo model" if Path(self.crew.model) == DEMO_MODEL else self.crew.model
        group = {"model": model, "device": self.crew.device, "ranks": self.crew.ranks}
        return {"request": request, "config": as_parameters(self.config), **group}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = "One picture a caption, with the caption's number as seed. The same command again goes on."
    add_captions_options(parser)
    parser.add_argument("--output", required=True, type=named, metavar="FOLDER", help="0000.png, ... go there")
    add_picture_options(parser, steps=STEPS)
    add_group_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write settings and median seconds there, too")


def add_captions_options(parser: argparse.ArgumentParser) -> None:
    """--captions, --count and --split."""
    parser.add_argument(
        "--captions", required=True, type=Path, metavar="FILE", help="COCO captions (.json), or one caption a line"
    )
    parser.add_argument("--count", type=int, help=f"the first so many captions (default: all, at most {COUNT})")
    parser.add_argument(
        "--split", nargs=2, type=int, metavar=("I", "N"), help="part I of N parts, counted from 0, of the captions"
    )


def chosen(words: argparse.Namespace) -> tuple[Caption, ...]:
    """The captions that --captions and --count ask for. Raises ValueError if there are not so many, or no such part."""
    captions = read_captions(words.captions)
    count = min(COUNT, len(captions)) if words.count is None else words.count
    if not 1 <= count <= len(captions):
        raise ValueError(
            f"count {count} is out of range; {words.captions} has captions for a number from 1 to {len(captions)}"
        )
    part(count, words.split)
    return captions[:count]


def run(words: argparse.Namespace) -> None:
    """Check, make what is missing, and say what was made."""
    began = time.monotonic()
    captions = chosen(words)
    request, config = request_of(words, prompt="-", seed=0), config_of(words)
    if words.json is not None:
        check_target(words.json, "coco.json")
        if words.json.resolve().parent == words.output.resolve():
            raise ValueError(f"{words.json} would lie among the run's own files; choose another place for --json")
    crew = errand.Crew.resolved(words.ranks, words.device, words.model, words.text_encoder_on)
    request = fit(request, config, crew)
    if request.height is not None and request.width is not None:
        config = config.replace(height=request.height, width=request.width)
    task = Task(captions=captions, split=words.split, folder=words.output, request=request, config=config, crew=crew)
    report = make_pictures(task, began=began)
    if words.json is not None:
        write_json(report, words.json)
    print(_summary(task, report))


def make_pictures(task: Task, *, began: float, script: Sequence[str] = RANK_MODULE) -> dict[str, Any]:
    """Make the pictures of `task` that are not there yet, by one group of ranks, and return what run.json says then.

    Raises ValueError, before anything is started, for what cannot work, and Failed if the group fails; the pictures
    that are there stay.
    """
    folder = task.folder
    pictures.check_texts(folder, task.texts, pictures.RUN)
    pictures.check_settings(folder, task.settings)
    pictures.make_folder(folder)
    with pictures.at_work(folder, task.split) as part_folder:
        watch = Watch(task, part_folder)
        watch.write_run()  # first: captions without it are somebody else's
        pictures.write_texts(folder, task.texts, part_folder)
        watch.write_run()
        if todo := pictures.missing(folder, task.indices):
            job = {
                "folder": str(folder.resolve()),
                "via": str(part_folder.resolve()),
                "request": as_parameters(task.request),
                "config": as_parameters(task.config),
                "captions": [[index, task.captions[index].text] for index in todo],
            }
            try:
                errand.run(script, job, task.crew, began=began, watch=watch)
            except Failed as error:
                there = f"{watch.done()} pictures are there, and the same command goes on"
                raise Failed(f"{error}; {there}") from None
            finally:
                watch.end()
        return watch.write_run()


class Watch:
    """Keeps run.json up to date while the ranks work, and a line on the terminal."""

    def __init__(self, task: Task, via: Path) -> None:
        self._task = task
        self._via = via
        self._shown = sys.stderr.isatty()
        self._last: dict[str, Any] | None = None

    def __call__(self) -> None:
        report = self.write_run()
        if self._shown:
            pace = f", {report['seconds']['total']:.1f} s each" if report["seconds"] else ""
            print(f"\r\033[Kpicture {self.done(' / ')}{pace}", end="", file=sys.stderr, flush=True)

    def done(self, of: str = " of ") -> str:
        """ "12 of 40", of this run's part."""
        there, own = pictures.numbers(self._task.folder), self._task.indices
        return f"{sum(index in own for index in there)}{of}{len(own)}"

    def write_run(self) -> dict[str, Any]:
        """run.json as of now."""
        task = self._task
        there = pictures.numbers(task.folder)
        report = {
            "count": max(len(task.captions), len(pictures.read_texts(task.folder))),
            "made": len(there),
            **task.settings,
            "seconds": pictures.median_seconds(task.folder),
        }
        if report != self._last:
            write_json(report, task.folder / pictures.RUN, via=self._via)
            self._last = report
        return report

    def end(self) -> None:
        """The last figures; and the line is cleared."""
        self.write_run()
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _summary(task: Task, report: dict[str, Any]) -> str:
    there = report["made"]
    words = f"{task.folder}: {there} of {report['count']} pictures, {report['request']['steps']} steps, "
    words += f"{report['ranks']} x {report['device']}"
    if seconds := report["seconds"]:
        stages = ", ".join(f"{stage} {seconds[stage]:.2f}" for stage in pictures.STAGES)
        words += f", median {seconds['total']:.2f} s each ({stages})"
    return words


def make(work: errand.Errand) -> dict[str, Any] | None:
    """A rank's work: one picture after another. Rank 0 saves them, and what they took."""
    job, engine, mesh = work.job, work.engine, work.mesh
    folder, via = Path(job["folder"]), Path(job["via"])
    config = as_config(job["config"])
    for index, text in job["captions"]:
        request = as_request({**job["request"], "prompt": text, "seed": index})
        request = request.resolved(default_size=engine.info.default_size)
        own = config.replace(height=request.height, width=request.width)
        _, finished = follow(engine.generate(request, own))
        if mesh.rank == 0:
            saving = time.perf_counter()
            chunk = png.chunks(request, own, model=engine.info.name, device=engine.info.device, ranks=mesh.size)
            png.save(finished.images[0], pictures.picture(folder, index), chunk, via=via)
            seconds = {**finished.seconds, "save": time.perf_counter() - saving}
            pictures.add_seconds(folder, index, seconds)
    return {}


if __name__ == "__main__":
    errand.be_rank(make)
