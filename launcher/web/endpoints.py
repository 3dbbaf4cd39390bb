"""The page's API: what /generate, /compare and /status do, as plain generators over the client. Their signatures and
names belong to app.py.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from distri_engine.config import DistriConfig, Parallelism, check_choice
from distri_engine.request import GenerationRequest
from launcher.auto import Auto, Wish
from launcher.client import Client
from launcher.web import cards, settings
from launcher.web.header import mood
from launcher.web.take import Take

Answer = dict[str, Any]
Files = tuple[Answer | None, ...]
METHODS = ("patch", "naive_patch", "single")  # the order in which /compare makes them


class NotMade(RuntimeError):
    """A picture failed or was stopped; the message is for people."""


def generate(
    client: Client, auto: Auto, values: Mapping[str, Any], allow: Callable[[int], None]
) -> Iterator[tuple[Answer | None, Answer]]:
    """Progress while the picture is made, then (picture file, report). Closing the generator cancels the picture.

    Raises ValueError, NotMade, and what `allow` raises when it is asked for so many pictures.
    """
    with _kept(client, values) as known:
        request, config, plan = parameters(client, auto, known, comparing=False)
        allow(1)
        for take, progress in _make(client, request, config, comparison="", plan=plan):
            yield (_file(take), take.report) if take else (None, progress)


def compare(client: Client, auto: Auto, values: Mapping[str, Any], allow: Callable[[int], None]) -> Iterator[Files]:
    """Progress, with each picture as soon as it is there; last (one device, naive, DistriFusion, report). Raises as
    `generate` does.
    """
    if values["parallelism"] != "auto":
        ranks = values.get("ranks") or client.status().ranks
        values = {**values, "split_batch": settings.split_batch(values.get("split_batch"), ranks)}
        if check_choice("parallelism", values["parallelism"], Parallelism) is not Parallelism.PATCH:
            raise ValueError(
                "compare always makes single, naive_patch and patch; it does not take parallelism "
                f"'{values['parallelism']}', leave it at 'auto'"
            )
    with _kept(client, values) as known:
        request, config, plan = parameters(client, auto, known, comparing=True)
        request = request.replace(seed=secrets.randbelow(2**32) if request.seed is None else request.seed)
        allow(len(METHODS))
        takes: dict[str, Take] = {}
        comparison = secrets.token_hex(8)
        for method in METHODS:
            one = config.replace(parallelism=method)
            why = plan if method == Parallelism.PATCH else None
            for take, progress in _make(client, request, one, comparison=comparison, plan=why):
                if take:
                    takes[method] = take
                yield (*_files(takes), progress | {"method": method})
        yield (*_files(takes), comparison_report(takes))


def status(client: Client) -> Answer:
    """{"state", "ranks", "device", "model", "queue", "restarts"}."""
    now = client.status()
    return {
        "state": mood(now),
        "ranks": now.ranks,
        "device": now.device,
        "model": now.model.name if now.model else None,
        "queue": now.queue,
        "restarts": now.restarts,
    }


def comparison_report(takes: Mapping[str, Take]) -> Answer:
    """The reports of three pictures, with PSNR (null for equal pictures), SSIM, LPIPS where its weights are, and
    speed-up over one device.
    """
    report: Answer = {method: take.report for method, take in takes.items()}
    likeness = {method: like for method in takes if (like := cards.quality(takes, method))}
    report["psnr"] = {name: None if math.isinf(like["psnr"]) else like["psnr"] for name, like in likeness.items()}
    report["ssim"] = {name: like["ssim"] for name, like in likeness.items()}
    if lpips := {name: like["lpips"] for name, like in likeness.items() if "lpips" in like}:
        report["lpips"] = lpips
    report["speedup_vs_one_device"] = {name: ratio for name in takes if (ratio := cards.speed(takes, name))}
    return report


def parameters(
    client: Client, auto: Auto, values: Mapping[str, Any], *, comparing: bool
) -> tuple[GenerationRequest, DistriConfig, Answer | None]:
    """The request and the config that flat parameters describe, and why, where they leave that to `auto`.

    Raises ValueError.
    """
    requested = {field.name: values[field.name] for field in fields(GenerationRequest) if field.name in values}
    names = {field.name for field in fields(DistriConfig)} - {"height", "width"}
    given = {name: values[name] for name in names if name in values}
    split = given.get("split_batch")
    if split is None:
        given.pop("split_batch", None)
    if given.get("mode") == "auto":
        given["mode"] = settings.best_mode(client.status())
    request = GenerationRequest(**requested)
    if given.get("parallelism") != "auto":
        return request, DistriConfig(**given), None
    config = DistriConfig(**{**given, "parallelism": Parallelism.PATCH})
    choice = auto(request, config, Wish(split_batch=split, comparing=comparing))
    return request, choice.config, choice.plan


@contextmanager
def _kept(client: Client, values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """`values` with the name of the picture to start from in the place of the picture."""
    if not values.get("image"):
        yield {**values, "image": None}
    else:
        with client.picture(values["image"]) as name:
            yield {**values, "image": name}


def _make(
    client: Client, request: GenerationRequest, config: DistriConfig, *, comparison: str, plan: Answer | None
) -> Iterator[tuple[Take | None, Answer]]:
    id = client.submit(request, config, comparison=comparison, plan=plan)
    update = None
    try:
        for update in client.updates(id):
            progress = {
                "id": id,
                "state": update.state,
                "message": update.message,
                "step": update.step,
                "steps": update.steps,
                "seed": update.request.get("seed"),
            }
            if update.state in ("cancelled", "failed"):
                raise NotMade(update.message)
            yield Take.of(update), progress
    finally:
        if update is None or not update.final:
            client.cancel(id)  # the caller went away


def _file(take: Take) -> Answer:
    return {"path": take.picture, "mime_type": "image/png", "meta": {"_type": "gradio.FileData"}}


def _files(takes: Mapping[str, Take]) -> Files:
    return tuple(_file(takes[method]) if method in takes else None for method in reversed(METHODS))
