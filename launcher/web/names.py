"""The words for methods, devices and figures that every part of the page shares. Where they stand on the page is the
business of the panels.
"""

from __future__ import annotations

METHODS = {
    "patch": "DistriFusion",
    "naive_patch": "Naive patch",
    "single": "1 device",
    "tensor": "Tensor parallel",
    "paradigms": "ParaDiGMS",
}

NOTES = {
    "patch": "patches share activations one step old",
    "naive_patch": "patches never talk: seams",
    "single": "reference, no patches",
    "paradigms": "several timesteps at once",
    "tensor": "weights shared out, exact",
}


def method_name(parallelism: str) -> str:
    """What people call a method."""
    return METHODS.get(parallelism, parallelism)


def devices(ranks: int, device: str) -> str:
    """The group in words: "2 CPU ranks", "4 × NVIDIA H200". A CPU rank is never called a GPU; until the
    device is known they are "2 ranks".
    """
    if device in ("", "CPU"):
        kind = "CPU rank" if device else "rank"
        return f"{ranks} {kind}{'s' if ranks != 1 else ''}"
    return f"{ranks} × {device}" if ranks != 1 else device


def milliseconds(value: float) -> str:
    """ "36.4" below 100, "364" above: three figures are what a clock of this kind is good for."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def shown_seconds(value: float) -> float:
    """Seconds as the page prints them; every ratio is taken of these, so that a reader can check it."""
    return round(value, 2 if value < 10 else 1)


def seconds_text(value: float) -> str:
    """The digits of `shown_seconds`."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def percent(share: float) -> str:
    """ "3.4 %" below ten, "48 %" above."""
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def amount(size: float) -> str:
    """Bytes for people: "840 B", "1.2 MB"."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
