"""The result cards and the sentence under them: how long each method took, and how close its picture came to the one
of a single device.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from launcher.web.names import METHODS, NOTES, method_name, seconds_text
from launcher.web.pictures import likeness
from launcher.web.take import Take

BASELINES = ("single", "naive_patch")


def cards(takes: Mapping[str, Take], *, running: str = "", waiting: Collection[str] = ()) -> dict[str, Any]:
    """One card a method, and the sentence. `running` is the method at work, `waiting` those still to come."""
    longest = max((take.seconds for take in takes.values()), default=0.0)
    main = next((method for method in (*takes, running) if method and method not in BASELINES), "patch")
    shown = [_card(method, takes, longest, running, waiting) for method in (*BASELINES, main)]
    return {"cards": shown, "story": story(takes) if not running and not waiting else ""}


def quality(takes: Mapping[str, Take], method: str) -> dict[str, float] | None:
    """PSNR and SSIM, if possible LPIPS, of a method's picture against one device's; None where there is none."""
    reference, take = takes.get("single"), takes.get(method)
    if reference is None or take is None or method == "single" or not take.same_size(reference):
        return None
    return likeness(take.picture, reference.picture)


def speed(takes: Mapping[str, Take], method: str) -> float | None:
    """How many times faster than one device, as the ratio of the seconds shown."""
    reference, take = takes.get("single"), takes.get(method)
    if reference is None or take is None or method == "single" or not take.seconds:
        return None
    return reference.seconds / take.seconds


def story(takes: Mapping[str, Take]) -> str:
    """What happened, in words."""
    main = takes.get("patch") or next(iter(takes.values()), None)
    if main is None:
        return ""
    name, whole = method_name(main.method), sum(main.parts.values())
    decode = f"decoding was {_percent(main.parts['decode'] / whole)} of the whole" if whole else ""
    wait = f"{_percent(main.waiting)} of its denoising was waiting for peers" if main.method != "single" else ""
    reference = takes.get("single")
    if reference is None or main is reference:
        told = f"{name} took {seconds_text(main.seconds)} s"
    else:
        told = f"{name} took {_percent(main.seconds / reference.seconds)} of one device's time"
        if main.seconds > reference.seconds:
            told += " (sharing this picture did not pay here)"
    sentence = "; ".join(part for part in (told, wait, decode) if part) + "."
    uncut = "No patch was cut: each device had a guidance branch." if main.uncut else ""
    return " ".join(part for part in (sentence, _differences(takes), uncut) if part)


def _differences(takes: Mapping[str, Take]) -> str:
    ours, naive = quality(takes, "patch"), quality(takes, "naive_patch")
    if ours is None:
        return ""
    told = f"Against one device's picture it scores {_decibel(ours['psnr'])} PSNR"
    return f"{told}, naive patches {_decibel(naive['psnr'])} (higher is closer)." if naive else f"{told}."


def _card(
    method: str, takes: Mapping[str, Take], longest: float, running: str, waiting: Collection[str]
) -> dict[str, Any]:
    take = takes.get(method)
    card: dict[str, Any] = {"method": method, "name": METHODS[method], "note": NOTES[method], "state": "empty"}
    if take is None:
        if method == running:
            return card | {"state": "running", "seconds": "…"}
        turn = "comes next" if method in [*waiting][:1] else "comes last"
        return card | ({"state": "waiting", "note": turn} if method in waiting else {})
    card |= {"state": "done", "seconds": seconds_text(take.seconds)}
    card["parts"] = [
        {"name": name, "text": f"{name} {seconds_text(value)} s", "share": value / longest if longest else 0}
        for name, value in take.parts.items()
    ]
    mode = take.config.get("mode", "corrected_async_gn")
    if method == "patch" and mode != "corrected_async_gn":
        card["note"] = f"mode {mode}"
    ratio, like = speed(takes, method), quality(takes, method)
    if ratio is not None:
        card["badge"] = _badge(ratio)
    if like is not None:
        last = f"· LPIPS {like['lpips']:.3f}" if "lpips" in like else "against 1 device"
        card["note"] = f"PSNR {_decibel(like['psnr'])} · SSIM {like['ssim']:.3f} {last}"
    return card


def _badge(ratio: float) -> dict[str, str]:
    if ratio >= 1.005:
        return {"text": f"{ratio:.2f}× faster", "tone": "good"}
    if ratio <= 0.995:
        return {"text": f"{1 / ratio:.2f}× slower", "tone": "bad"}
    return {"text": "same speed", "tone": "even"}


def _decibel(value: float) -> str:
    return "∞ dB (equal)" if math.isinf(value) else f"{value:.1f} dB"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
