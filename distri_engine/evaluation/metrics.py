"""What two folders of pictures are worth to each other, as rows: likeness picture by picture, distances of whole sets,
and what the judge of the embedded model's world says. Which files, captions and answers are compared is the caller's
decision; each number is made by the modules beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from PIL import Image

from distri_engine.evaluation.frechet import frechet_distance
from distri_engine.evaluation.judge import Judge, judged, right
from distri_engine.evaluation.likeness import RADIUS, pixels, psnr, ssim
from distri_engine.evaluation.perceptual import MissingError, fid, lpips_metric

FRECHET = "Fréchet distance (demo judge features)"
# What the judge is asked, and what to call a right answer.
QUESTIONS = {
    "subject": "subject right",
    "colour": "its colour right",
    "time": "time of day right",
    "ground": "ground right",
    "weather": "weather right",
    "orb": "sun or moon right",
}
COUNT, DOUBLED = "subjects", "2+"  # the judge's head that counts, and its answer of two or more


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric. Of likeness, `value` is the median; of attributes, the share in folder A."""

    metric: str
    better: str  # "higher" or "lower"
    value: float | None = None
    mean: float | None = None  # over pictures; published figures are means
    worst: float | None = None
    b: float | None = None  # the same of folder B alone
    unit: str = ""
    of: int | None = None  # how many pictures, or answers, the number is made of
    note: str = ""
    missing: str = ""  # why there is no value, and the remedy
    infinite: tuple[str, ...] = ()  # those of value, mean and worst that are: JSON has no such number

    def as_json(self) -> dict[str, Any]:
        """`metric`, `value` and `better`, and of the rest what has something to say."""
        always = {"metric": self.metric, "value": self.value, "better": self.better}
        return always | {
            name: value for name, value in vars(self).items() if name not in always and value not in (None, "", ())
        }


def likeness_rows(a: Sequence[Path], b: Sequence[Path], *, download: bool, done: Callable[[], None]) -> list[Row]:
    """PSNR, SSIM and LPIPS of pairs of pictures, a[i] with b[i], all pairs of one size; `done` is called after each."""
    side = min(map(_side, a))
    missing = (
        {"SSIM": f"its window needs 11 x 11 pixels, and the smallest of these has {side}"} if side <= 2 * RADIUS else {}
    )
    lpips = None
    try:
        lpips = lpips_metric(side, download=download)
    except MissingError as error:
        missing["LPIPS"] = str(error)
    values: dict[str, list[float]] = {"PSNR": [], "SSIM": [], "LPIPS": []}
    for one, other in zip(a, b, strict=True):
        ours, theirs = pixels(one), pixels(other)
        values["PSNR"].append(psnr(ours, theirs))
        if "SSIM" not in missing:
            values["SSIM"].append(ssim(ours, theirs))
        if lpips is not None:
            values["LPIPS"].append(lpips(one, other))
        done()
    better = {"PSNR": "higher", "SSIM": "higher", "LPIPS": "lower"}
    return [
        Row(metric=name, better=better[name], missing=missing[name])
        if name in missing
        else _spread(name, values[name], better[name])
        for name in values
    ]


def _side(path: Path) -> int:
    """Pixels of a picture's shorter side."""
    with Image.open(path) as picture:
        return min(picture.size)


def _spread(metric: str, values: Sequence[float], better: str) -> Row:
    """Median, mean and worst. JSON has no infinity: what is infinite is named, and the row says why."""
    if any(map(math.isnan, values)):
        return Row(metric=metric, better=better, missing="for some of these pictures it is not a number")
    equal = sum(map(math.isinf, values))
    worst = min(values) if better == "higher" else max(values)
    figures = {"value": median(values), "mean": fmean(values), "worst": worst}
    note = f"{equal} of {len(values)} pictures are equal, and their {metric} infinite" if equal else ""
    finite = math.isfinite(figures["value"])
    return Row(
        metric=metric,
        better=better,
        **{name: figure for name, figure in figures.items() if math.isfinite(figure)},
        unit="dB" if metric == "PSNR" else "",
        of=len(values),
        note=note if finite else "",
        missing="" if finite else note,
        infinite=tuple(name for name, figure in figures.items() if math.isinf(figure)),
    )


def fid_row(a: Sequence[Path], b: Sequence[Path], *, download: bool, instead: str = "") -> Row:
    """FID of two sets of pictures, or why there is none, and what there is `instead`."""
    count = min(len(a), len(b))
    try:
        value = fid(a, b, download=download)
    except MissingError as error:
        return Row(metric="FID", better="lower", missing="; ".join(filter(None, (str(error), instead))))
    note = f"of {count} pictures; published figures take thousands, and fewer make it larger" if count < 2048 else ""
    return Row(metric="FID", better="lower", value=value, of=count, note=note)


def judge_rows(judge: Judge, a: Sequence[Path], b: Sequence[Path], scenes: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The distance in the judge's features, attributes right and doubled subjects; scenes[i] is what a[i], b[i] should
    show.
    """
    ours, theirs = judged(judge, a), judged(judge, b)
    distance = frechet_distance(ours.features, theirs.features)
    note = f"{len(a)} pictures, {ours.features.shape[1]} features; not FID, and comparable for equal counts only"
    rows = [Row(metric=FRECHET, better="lower", value=distance, of=len(a), note=note)]
    everything = {"attributes right": list(QUESTIONS)} | {name: [question] for question, name in QUESTIONS.items()}
    for name, questions in everything.items():
        hits, same = (
            [hit for question in questions for hit in right(side.answers, scenes, question)] for side in (ours, theirs)
        )
        if hits:
            rows.append(_share(name, hits, same, better="higher"))
    counted = [index for index, scene in enumerate(scenes) if scene["subject"] != "none"]
    if counted:
        twice = [[side.answers[index][COUNT] == DOUBLED for index in counted] for side in (ours, theirs)]
        rows.append(_share("doubled subjects", *twice, better="lower"))
    return rows


def _share(metric: str, ours: Sequence[bool], theirs: Sequence[bool], *, better: str) -> Row:
    return Row(metric=metric, better=better, value=100 * fmean(ours), b=100 * fmean(theirs), unit="%", of=len(ours))
