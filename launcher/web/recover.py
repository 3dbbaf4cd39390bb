"""Settings out of a picture that a visitor drops on the page: from our own chunk of a PNG, else from the text that
other programs write, as far as it is understood. Nothing in the file is believed: the dataclasses judge every value.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import infotext, png
from launcher.schema import Status, as_config, as_parameters, as_request
from launcher.web import settings

MAX_BYTES = 2**20  # of the file's beginning; settings stand before the picture
NONE = "This picture carries no settings: it was saved without them, or something has taken them out."
# What changes neither the picture nor the controls, and what the size says already.
SILENT = (
    "height",
    "width",
    "image",
    "strength",
    "do_classifier_free_guidance",
    "comm_checkpoint",
    "use_cuda_graph",
    "verbose",
)


def decode(uri: str) -> bytes:
    """The bytes of a data URI. Raises ValueError if they are too many, or none."""
    body = uri.partition(";base64,")[2]
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise ValueError(f"more than the first {MAX_BYTES // 2**20} MiB of the file were sent; choose a PNG picture")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        raise ValueError("the file did not arrive whole; try it again") from None


def controls(data: bytes, status: Status) -> tuple[dict[str, Any], list[str]]:
    """The values of the controls that make this picture again, and a sentence for each thing that will be different.

    `data` is the beginning of the file. Raises ValueError if nothing comes out of it.
    """
    chunks = png.read(data)
    if png.OURS in chunks:
        try:
            return _ours(chunks[png.OURS], status)
        except ValueError as error:
            if png.COMMON not in chunks:
                raise ValueError(f"this picture's settings cannot be used: {error}") from None
    if png.COMMON not in chunks:
        raise ValueError(NONE)
    try:
        return _common(chunks[png.COMMON])
    except ValueError as error:
        raise ValueError(f"this picture's settings are not understood: {error}") from None


def _ours(text: str, status: Status) -> tuple[dict[str, Any], list[str]]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("they are no JSON") from None
    if not isinstance(said, dict) or said.get("format") != png.FORMAT:
        raise ValueError("another version of this program wrote them")
    parts = [part if isinstance(part := said.get(name), dict) else {} for name in ("request", "config", "topology")]
    request, config = as_request(parts[0]), as_config(parts[1])
    values = settings.of_picture(as_parameters(request), as_parameters(config), [])
    if values["ranks"] not in settings.rank_choices(status.ranks):
        values["ranks"] = settings.DEFAULTS["ranks"]
    del values["run"]  # which baselines a visitor wants is no property of a picture
    start = ["It began from another picture, which is not in it; here it begins from noise."] if request.image else []
    return values, [*start, *_elsewhere(parts[2], status), *_out_of_reach(request, config, values, status)]


def _elsewhere(topology: Mapping[str, Any], status: Status) -> list[str]:
    """What the machine has to do with it."""
    model, used = topology.get("model"), topology.get("used")
    notes = []
    if isinstance(model, str) and status.model and model != status.model.name:
        notes.append(f"It was made by another model, {model[:100]}.")
    if isinstance(used, int) and used > 1 and used != status.ranks:
        notes.append(f"It was made on {used} devices, here are {status.ranks}.")
    return notes


def _out_of_reach(
    request: GenerationRequest, config: DistriConfig, values: Mapping[str, Any], status: Status
) -> list[str]:
    """What the controls cannot say, found by asking what they would start."""
    try:
        asked = settings.plan({**settings.DEFAULTS, **values, "run": "DistriFusion"}, status)
    except ValueError:
        return []  # Generate says why
    wanted, here = (
        as_parameters(request) | as_parameters(config),
        as_parameters(asked.request) | as_parameters(asked.configs[0]),
    )
    differing = [name for name in wanted if name not in SILENT and wanted[name] != here[name]]
    return [f"{name.replace('_', ' ').capitalize()} was {wanted[name]}, here it is {here[name]}." for name in differing]


def _common(text: str) -> tuple[dict[str, Any], list[str]]:
    found = infotext.read(text)
    request, config = GenerationRequest(**found.request), DistriConfig(**found.config)
    values = settings.of_picture(as_parameters(request), as_parameters(config), [])
    named = {*found.request, *found.config, "style"} | ({"auto_warmup"} if "warmup_steps" in found.config else set())
    values = {name: value for name, value in values.items() if name in named}
    return values | ({"random_seed": False} if "seed" in values else {}), found.problems
