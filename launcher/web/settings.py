"""The controls: their defaults, the picture sizes they offer, what a link carries, and the way from their values to
requests and configs and back. Reading and writing the components is app.py's business.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from distri_engine.bands import check_bands, patch_ranks
from distri_engine.config import AUTO, DistriConfig, Parallelism, SplitScheme, SyncMode
from distri_engine.request import MAX_SEED, GenerationRequest, Scheduler
from launcher import styles
from launcher.auto import MANY, Choice, Wish, simple
from launcher.options import MAX_RANKS
from launcher.schema import ModelInfo, Status

Chooser = Callable[[GenerationRequest, DistriConfig, Wish], Choice]

RUNS = {"DistriFusion": (), "+ Naive": ("naive_patch",), "+ Naive + 1 device": ("naive_patch", "single")}
METHODS = (
    Parallelism.PATCH,
    Parallelism.NAIVE_PATCH,
    Parallelism.TENSOR,
    Parallelism.PARADIGMS,
    Parallelism.SINGLE,
)
SPLIT_BATCH = {"auto": None, "on": True, "off": False}

DEFAULTS: dict[str, Any] = {
    "prompt": "",
    "style": styles.NONE,
    "negative_prompt": "",
    "run": "+ Naive + 1 device",
    "width": None,  # the model's own
    "height": None,
    "steps": 30,
    "guidance_scale": 5.0,
    "seed": 42,  # shown until a random one is drawn
    "random_seed": True,
    "scheduler": Scheduler.DDIM.value,
    "parallelism": "auto",
    "ranks": "auto",
    "mode": "auto",
    "warmup_steps": 4,
    "auto_warmup": False,
    "split_scheme": SplitScheme.ROW.value,
    "split_batch": "auto",
    "metadata": True,
}
SWITCHES = ("auto_warmup", "metadata")
WHOLE_NUMBERS = ("width", "height", "steps", "seed", "warmup_steps")
CHOICES = {
    "run": tuple(RUNS),
    "style": tuple(styles.STYLES),
    "scheduler": tuple(member.value for member in Scheduler),
    "parallelism": ("auto", *(method.value for method in METHODS)),
    "mode": ("auto", *(member.value for member in SyncMode)),
    "split_scheme": tuple(member.value for member in SplitScheme),
    "split_batch": tuple(SPLIT_BATCH),
}

LABELS = {
    "style": "Style",
    "width": "Width",
    "height": "Height",
    "steps": "Steps",
    "guidance_scale": "Guidance",
    "scheduler": "Scheduler",
    "parallelism": "Method",
    "ranks": "Devices",
    "mode": "Synchronisation",
    "warmup_steps": "Warm-up steps",
    "auto_warmup": "End the warm-up by itself",
    "split_scheme": "Cut of naive patches",
    "split_batch": "Spread guidance over devices",
    "metadata": "Settings in the PNG",
}
INFO = {
    "run": "Baselines use the same prompt and seed, after the DistriFusion picture.",
    "alone": "There is one device: nobody to share with, so nothing to compare.",
    "style": "Words that follow the prompt.",
    "negative_prompt": "What the picture should not show.",
    "width": "Pixels; a multiple of 32.",
    "height": "Pixels; a multiple of 32.",
    "steps": "More: finer, slower.",
    "guidance_scale": "Strength of the prompt.",
    "scheduler": "The sampler that walks from noise to picture.",
    "parallelism": "Which system makes the first picture; auto: the fastest, and patches where they are compared.",
    "ranks": "How many share it; auto: all, or with method Auto as many as are fastest.",
    "mode": "What may be one step old after warm-up; auto: what was measured best for this model.",
    "warmup_steps": "Fully synchronous steps at the start; more are closer to one device, and slower.",
    "auto_warmup": "After the first step in which the activations hardly changed.",
    "split_scheme": "Rows, columns, or both in turn.",
    "split_batch": "Half of the devices take each guidance branch; auto: from 4 devices up, or as method Auto decides.",
    "metadata": "The file says how to make it again: prompt, seed and everything above.",
}
WORDS = {
    "ddim": "DDIM",
    "euler": "Euler",
    "dpm-solver": "DPM-Solver++",
    "patch": "DistriFusion (displaced patches)",
    "naive_patch": "Naive patch (patches never talk)",
    "paradigms": "ParaDiGMS (several timesteps at once)",
    "tensor": "Tensor parallel (weights shared out, exact)",
    "single": "1 device",
    "full_sync": "full_sync: everything fresh, exact",
    "sync_gn": "sync_gn: GroupNorm fresh",
    "stale_gn": "stale_gn: moments one step old",
    "corrected_async_gn": "corrected_async_gn: the paper's",
    "separate_gn": "separate_gn: own moments only",
    "no_sync": "no_sync: nothing, fastest",
    "extrapolated": "extrapolated: one step old, sent with foresight",
    "row": "Rows",
    "col": "Columns",
    "alternate": "Alternate",
    "auto": "Auto",
    "on": "On",
    "off": "Off",
}

RATIOS = {"1:1": 1.0, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "3:4": 3 / 4, "9:16": 9 / 16}
# The sizes that SDXL was trained on (Podell et al. 2023, appendix I), (width, height).
SDXL_SIZES = {"4:3": (1152, 896), "3:2": (1216, 832), "16:9": (1344, 768), "3:4": (896, 1152), "9:16": (768, 1344)}

EXAMPLES = {
    True: {  # the embedded model's world
        "Red house, snow": "a red house with a blue roof in a snowy field on a clear day",
        "Sailboat at sunset": "a yellow sailboat on the sea at sunset with an orange sun",
        "Lighthouse, night": "a white lighthouse on green hills under a starry night sky",
        "Moon over mountains": "a white moon over purple mountains at night",
    },
    False: {
        "Lighthouse": "a lighthouse on a basalt cliff at sunset, long exposure",
        "Aurora village": "a snowy mountain village under the aurora, warm windows",
        "Misty harbour": "fishing boats in a misty harbour at dawn, oil painting",
        "Floating islands": "floating islands with waterfalls above a sea of clouds, concept art",
    },
}


def examples(status: Status) -> list[dict[str, str]]:
    """Prompts that the model can draw; while it loads, those of the embedded one."""
    demo = status.model.demo if status.model else True
    return [{"label": label, "prompt": prompt} for label, prompt in EXAMPLES[demo].items()]


def size_of(ratio: str, model: ModelInfo) -> tuple[int, int]:
    """Width and height of about the model's own area, in its multiples, nearest to an aspect ratio."""
    side, multiple = model.default_size, model.size_multiple
    if side == 1024 and ratio in SDXL_SIZES:
        return SDXL_SIZES[ratio]
    wanted = RATIOS[ratio]
    sides = range(multiple, 2 * side + 1, multiple)
    fits = [(width, height) for width in sides for height in sides if 0.8 <= width * height / side**2 <= 1.1]
    return min(fits, key=lambda size: (abs(size[0] / size[1] / wanted - 1), abs(size[0] * size[1] - side**2)))


def ratio_of(width: int | None, height: int | None, model: ModelInfo) -> str | None:
    """The aspect ratio whose size this is; None for a size of the visitor's own."""
    return next((ratio for ratio in RATIOS if size_of(ratio, model) == (width, height)), None)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the controls ask for."""

    request: GenerationRequest
    configs: list[DistriConfig]  # to make it with, the main method first
    plan: dict[str, Any] | None  # why the first is as it is, if Auto chose it


def plan(values: Mapping[str, Any], status: Status, auto: Chooser | None = None) -> Run:
    """The run that the controls ask for; `auto` chooses what they leave to it. ValueError says what is wrong."""
    for name in ("steps", "guidance_scale", "warmup_steps"):
        if values[name] is None and not (name == "warmup_steps" and values["auto_warmup"]):
            raise ValueError(f"{LABELS[name]} is empty; {DEFAULTS[name]:g} is usual")
    seed = None if values["random_seed"] else values["seed"]
    request = GenerationRequest(
        prompt=styles.join(values["prompt"] or "", values["style"]),
        negative_prompt=values["negative_prompt"] or "",
        height=values["height"],
        width=values["width"],
        steps=values["steps"],
        guidance_scale=values["guidance_scale"],
        seed=secrets.randbelow(MAX_SEED + 1) if seed is None else seed,
        scheduler=values["scheduler"],
        metadata=values["metadata"],
    )
    ranks = None if values["ranks"] == "auto" else int(values["ranks"])
    left_to_auto = values["parallelism"] == "auto"
    config = DistriConfig(
        parallelism=Parallelism.PATCH if left_to_auto else values["parallelism"],
        ranks=ranks,
        mode=best_mode(status) if values["mode"] == "auto" else values["mode"],
        warmup_steps=AUTO if values["auto_warmup"] else values["warmup_steps"],
        split_scheme=values["split_scheme"],
        split_batch=split_batch(SPLIT_BATCH[values["split_batch"]], ranks or status.ranks),
    )
    if status.ranks == 1:  # one device has nobody to share with: one picture, made alone
        config = config.replace(parallelism="single", ranks=None)
        return Run(request=request, configs=[config], plan=None)
    why = None
    if left_to_auto:
        wish = Wish(split_batch=SPLIT_BATCH[values["split_batch"]], comparing=bool(RUNS[values["run"]]))
        choice = (auto or partial(simple, status=status))(request, config, wish)
        config, why = choice.config, choice.plan
    others = [method for method in RUNS[values["run"]] if method != config.parallelism]
    if config.parallelism is Parallelism.PATCH and patch_ranks(request, config, status.ranks) == 1:
        # Each device has a guidance branch and no patch is cut: naive patches would be the same picture.
        others = [method for method in others if method != Parallelism.NAIVE_PATCH]
    configs = [config] + [config.replace(parallelism=method) for method in others]
    for each in configs:  # refuse before the first of them starts, not after
        check_bands(request, each, status.ranks)
    return Run(request=request, configs=configs, plan=why)


def rank_choices(ranks: int) -> tuple[str, ...]:
    """How many devices can be chosen in a group of `ranks`."""
    return ("auto", *map(str, range(1, ranks + 1)))


def style_info(status: Status) -> str:
    """What a style does. The embedded model has seen few words."""
    if not (status.model and status.model.demo):
        return INFO["style"]
    return f"{INFO['style']} This model knows those of {', '.join(styles.EVERYWHERE[:-1])} and {styles.EVERYWHERE[-1]}."


def best_mode(status: Status) -> SyncMode:
    """Extrapolation is measured on the embedded model alone; for others the paper's choice stands."""
    return SyncMode.EXTRAPOLATED if status.model and status.model.demo else SyncMode.CORRECTED_ASYNC_GN


def split_batch(chosen: bool | None, ranks: int) -> bool:
    """Whether guidance branches are spread over ranks. Unless chosen: from 4 ranks up, because on 2 the branches
    alone would occupy both and no patch would be cut.
    """
    return ranks >= MANY if chosen is None else chosen


def of_picture(
    request: Mapping[str, Any],
    config: Mapping[str, Any],
    methods: Sequence[str],
    *,
    plan: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The values of the controls that make a finished picture again; `methods` are those it was compared with. `plan`:
    Auto's for it; what it chose is left to Auto again, and what was asked for is asked for again.
    """
    values = {name: request[name] for name in DEFAULTS if name in request}
    values |= {name: config[name] for name in CHOICES if name in config and config[name] in CHOICES[name]}
    values["prompt"], values["style"] = styles.split(str(request.get("prompt", "")))
    values["ranks"] = str(config.get("ranks") or "auto")
    warmup = config.get("warmup_steps", DEFAULTS["warmup_steps"])
    values["auto_warmup"] = warmup == AUTO
    values["warmup_steps"] = DEFAULTS["warmup_steps"] if warmup == AUTO else warmup
    values["split_batch"] = "on" if config.get("split_batch") else "off"
    main = {config.get("parallelism")}
    matching = [run for run, baselines in RUNS.items() if set(baselines) - main == set(methods) - main]
    values["run"] = matching[0] if matching else DEFAULTS["run"]
    if plan is not None:
        asked = plan.get("asked", {})
        values |= {
            "parallelism": "auto",
            "ranks": str(asked.get("ranks", "auto")),
            "split_batch": {None: "auto", True: "on", False: "off"}[asked.get("split_batch")],
        }
    return values | {"random_seed": False}


def from_link(query: Mapping[str, str], ranks: int = MAX_RANKS) -> tuple[dict[str, Any], list[str]]:
    """The control values in a link's query, for a group of `ranks`, and a sentence for each that cannot be used."""
    choices = {**CHOICES, "ranks": rank_choices(ranks)}
    values: dict[str, Any] = {}
    complaints: list[str] = []
    for name, text in query.items():
        if name not in DEFAULTS or name == "random_seed":
            continue
        try:
            if name in WHOLE_NUMBERS:
                values[name] = int(text)
            elif name == "guidance_scale":
                values[name] = float(text)
            elif name in SWITCHES:
                values[name] = {"True": True, "False": False}[text]
            elif name in choices and text not in choices[name]:
                raise ValueError
            else:
                values[name] = text
        except (ValueError, KeyError):
            complaints.append(f"The link's {name.replace('_', ' ')} cannot be used; the default stands instead.")
    if "seed" in values:
        values["random_seed"] = False
    return values, complaints


def from_draft(draft: Any, ranks: int) -> dict[str, Any]:
    """The control values that a visitor had set and not used, as their browser kept them, as far as they are some."""
    if not isinstance(draft, Mapping):
        return {}
    values, _ = from_link({name: str(value) for name, value in draft.items() if value is not None}, ranks)
    return values | {"random_seed": draft.get("random_seed") is not False}


def to_link(values: Mapping[str, Any]) -> dict[str, str]:
    """The query of a link that brings these values back."""
    return {
        name: str(value)
        for name, value in values.items()
        if name in DEFAULTS and name != "random_seed" and value not in (None, "") and value != DEFAULTS[name]
    }
