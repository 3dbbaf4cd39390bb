"""What the pipelines can do, one row a feature: every row on 2, 3 and 4 ranks against plain diffusers on one device.
With full_sync the result is the same; in the stale modes, which take turns, the row runs, all ranks agree, and its PSNR
is printed at the end of the run.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import (
    MultiPipelineCallbacks,
    PipelineCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
)
from PIL import Image

from tests.engine.test_lora import add_adapter
from tests.support.gang import run_on_ranks, side_by_side
from tests.support.models import relative
from tests.support.pipelines import KINDS, tiny_pipeline, tiny_safety_checker

HEIGHT, WIDTH, STEPS = 128, 64, 3
LONGER = 5  # where strength or a callback takes some of them: a stale one must remain
CELLS = (4, HEIGHT // 8, WIDTH // 8)
EXACT = 5e-6  # relative L2 in float32
APART = {"split_batch": True}  # on an even number of ranks; the other rows cut patches only
PARTS = 2  # of the table, so that a gang's time stays short
STALE = ("sync_gn", "stale_gn", "corrected_async_gn", "separate_gn", "no_sync", "extrapolated")
TURNS = 3  # on 2 ranks a row runs every third of them, besides full_sync; test_modes.py has every mode on up to 8


@dataclass(frozen=True)
class Row:
    """A feature: the pipeline, the call beyond prompt and seed, and what is done to the diffusers pipeline before."""

    name: str
    kind: str
    task: str = ""
    call: Callable[[], dict[str, Any]] = dict
    setup: Callable[[Any], object] | None = None  # such a row has components of its own
    config: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    bound: float = EXACT
    always_exact: bool = False  # in every mode


# --- what calls are given


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def picture(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    tilted = np.add.outer(np.arange(height) * 2, np.arange(width) * 3)[..., None] + np.array([0, 80, 160])
    return Image.fromarray((tilted % 256).astype(np.uint8))


def mask(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    painted = np.zeros((height, width), np.uint8)
    painted[height // 4 : height // 2, width // 4 : -width // 4] = 255
    return Image.fromarray(painted)


def tensor(images: int = 1) -> torch.Tensor:
    return noise(images, 3, HEIGHT, WIDTH).clamp(0, 1)


def embeddings() -> dict[str, Any]:
    text = {"prompt_embeds": noise(1, 77, 48), "negative_prompt_embeds": noise(1, 77, 48, seed=4)}
    pooled = {"pooled_prompt_embeds": noise(1, 32, seed=5), "negative_pooled_prompt_embeds": noise(1, 32, seed=6)}
    return {"prompt": None} | text | pooled


def scheduler(name: str) -> Callable[[Any], None]:
    def replace(pipe: Any) -> None:
        # On a rank this is the wrapper: components are replaced through it.
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)

    return replace


# --- callbacks; those in the group run on rank 0 only


def here() -> None:
    assert os.environ.get("RANK", "0") == "0", "a callback ran on a rank that is not 0"


def new_latents(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    here()
    return {"latents": tensors["latents"] * 0.9} if step else {}


def written_latents(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    here()
    tensors["latents"].mul_(1.1)
    return tensors


def new_text(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    here()
    return {"prompt_embeds": tensors["prompt_embeds"].flip(1)} if step == 1 else {}


def more_guidance(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    here()
    pipe._guidance_scale = 2.0 + step
    return tensors


def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    here()
    pipe._interrupt = step == 1
    return {}


def preview(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """On one rank: looks at the picture, and lets the text follow it."""
    here()
    look = pipe.vae.decode(tensors["latents"]).sample.mean()
    text, without, *_ = pipe.encode_prompt("a blue house" if look > 0 else "a moon", device=pipe.device)
    return {"prompt_embeds": torch.cat([without, text])}


def legacy(step: int, timestep: Any, latents: torch.Tensor) -> None:
    here()
    latents.add_(0.1)


class Brighter(PipelineCallback):
    tensor_inputs = ["latents"]  # noqa: RUF012

    def callback_fn(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        here()
        tensors["latents"] = tensors["latents"] + 0.1
        return tensors


def on_step_end(callback: Any, *tensors: str) -> Callable[[], dict[str, Any]]:
    asked = {"callback_on_step_end_tensor_inputs": list(tensors)} if tensors else {}
    return lambda: {"callback_on_step_end": callback, "num_inference_steps": LONGER} | asked


class Watermark:
    """Marks that a decode ends with it."""

    def apply_watermark(self, images: torch.Tensor) -> torch.Tensor:
        return images * 0.5


def centred_latents(pipe: Any) -> None:
    pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.0, 1.2])


def safety_checker(pipe: Any) -> None:
    # The other ranks have none, as from_pretrained leaves them.
    if os.environ.get("RANK", "0") == "0":
        pipe.safety_checker, pipe.feature_extractor = tiny_safety_checker()


def lora(pipe: Any) -> None:
    add_adapter(pipe.unet, "one", ["to_k", "to_v", "conv1", "conv_in"])


def fused_lora(pipe: Any) -> None:
    lora(pipe)
    pipe.fuse_lora(components=["unet"])


ALL_ROWS = (
    # SDXL, text to picture
    Row("text", "sdxl"),
    Row("guidance branches apart", "sdxl", config=APART),
    Row("several prompts", "sdxl", call=lambda: {"prompt": ["a red house", "a moon"], "negative_prompt": ["x", "y z"]}),
    Row("images per prompt", "sdxl", call=lambda: {"num_images_per_prompt": 2, "negative_prompt": "blue"}),
    Row("batch, branches apart", "sdxl", call=lambda: {"prompt": ["a", "b"], "num_images_per_prompt": 2}, config=APART),
    Row("second prompts", "sdxl",
        call=lambda: {"prompt_2": "snow", "negative_prompt": "x", "negative_prompt_2": "sun"}),
    Row("embeddings", "sdxl", call=embeddings),
    Row("first part of the steps", "sdxl", call=lambda: {"denoising_end": 0.5, "num_inference_steps": 6}),
    Row("guidance rescale", "sdxl", call=lambda: {"guidance_rescale": 0.7}),
    Row("clip skip", "sdxl", call=lambda: {"clip_skip": 1}),
    Row("attention scale", "sdxl", call=lambda: {"cross_attention_kwargs": {"scale": 0.5}}),
    Row("latents", "sdxl", call=lambda: {"latents": noise(1, *CELLS)}),
    Row("eta", "sdxl", call=lambda: {"eta": 1.0}),
    Row("generators", "sdxl", call=lambda: {"prompt": ["a", "b"], "generator": [seeded(1), seeded(2)]}),
    Row("sizes and crops", "sdxl", call=lambda: {
        "original_size": (256, 128), "crops_coords_top_left": (8, 16), "target_size": (64, 64),
        "negative_original_size": (512, 512), "negative_crops_coords_top_left": (1, 2),
        "negative_target_size": (96, 64),
    }),
    Row("timesteps", "sdxl", call=lambda: {"timesteps": [999, 600, 300, 50]},
        setup=scheduler("EulerDiscreteScheduler")),
    Row("sigmas", "sdxl", call=lambda: {"sigmas": [14.0, 5.0, 1.0, 0.2]}, setup=scheduler("EulerDiscreteScheduler")),
    Row("no guidance", "sdxl", call=lambda: {"guidance_scale": 1.0}),
    Row("guidance distilled", "sdxl-distilled", call=lambda: {"guidance_scale": 8.0}),
    Row("LCM", "sdxl-distilled", call=lambda: {"guidance_scale": 1.5}, setup=scheduler("LCMScheduler")),
    Row("one step", "sdxl", call=lambda: {"num_inference_steps": 1, "guidance_scale": 0.0},
        setup=scheduler("EulerAncestralDiscreteScheduler"), always_exact=True),
    Row("Euler ancestral", "sdxl", setup=scheduler("EulerAncestralDiscreteScheduler")),
    Row("second order", "sdxl", setup=scheduler("HeunDiscreteScheduler")),
    Row("warm-up longer than the steps", "sdxl", config={"warmup_steps": 50}, always_exact=True),
    Row("output pil", "sdxl", call=lambda: {"output_type": "pil"}),
    Row("output np", "sdxl", call=lambda: {"output_type": "np"}),
    Row("output pt", "sdxl", call=lambda: {"output_type": "pt"}),
    Row("output tuple", "sdxl", call=lambda: {"return_dict": False}),
    Row("watermark", "sdxl", call=lambda: {"output_type": "pt"},
        setup=lambda pipe: setattr(pipe, "watermark", Watermark())),
    Row("centred latents", "sdxl", call=lambda: {"output_type": "pt"}, setup=centred_latents),
    Row("VAE tiling", "sdxl", call=lambda: {"output_type": "pt"}, setup=lambda pipe: pipe.vae.enable_tiling()),
    Row("VAE slicing", "sdxl", call=lambda: {"output_type": "pt", "num_images_per_prompt": 2},
        setup=lambda pipe: pipe.vae.enable_slicing()),
    Row("attention slicing", "sdxl", setup=lambda pipe: pipe.enable_attention_slicing()),
    # Callbacks
    Row("callback: latents", "sdxl", call=on_step_end(new_latents)),
    Row("callback: latents in place", "sdxl", call=on_step_end(written_latents)),
    Row("callback: text", "sdxl", call=on_step_end(new_text, "latents", "prompt_embeds")),
    Row("callback: preview", "sdxl", call=on_step_end(preview)),
    Row("callback: guidance", "sdxl", call=on_step_end(more_guidance)),
    Row("callback: interrupt", "sdxl", call=on_step_end(stop)),
    Row("callback: guidance ends", "sdxl", call=on_step_end(SDXLCFGCutoffCallback(cutoff_step_ratio=0.25))),
    Row("callback: guidance ends, branches apart", "sdxl", config=APART,
        call=on_step_end(SDXLCFGCutoffCallback(cutoff_step_ratio=0.25))),
    Row("callback: several", "sdxl", call=on_step_end(
        MultiPipelineCallbacks([Brighter(), SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)]))),
    Row("callback: the older kind", "sdxl", call=lambda: {"callback": legacy, "callback_steps": 2}),
    # SDXL, from a picture
    Row("img2img", "sdxl", "Img2Img", lambda: {"image": picture(), "strength": 0.7, "output_type": "pil"}),
    Row("img2img, arrays", "sdxl", "Img2Img", lambda: {
        "image": [np.asarray(picture()) / 255.0] * 2, "prompt": ["a", "b"], "strength": 0.7}),
    Row("img2img, tensor", "sdxl", "Img2Img", lambda: {"image": tensor(), "num_images_per_prompt": 2, "strength": 0.9}),
    Row("img2img, latents", "sdxl", "Img2Img",
        lambda: {"image": picture(), "latents": noise(1, *CELLS), "strength": 1.0}),
    Row("img2img, sizes", "sdxl", "Img2Img", lambda: {
        "image": picture(), "strength": 0.9, "original_size": (256, 128), "target_size": (64, 64), "eta": 0.5,
        "crops_coords_top_left": (8, 16), "negative_crops_coords_top_left": (1, 2), "guidance_rescale": 0.5,
        "negative_original_size": (512, 512), "negative_target_size": (96, 64), "clip_skip": 1}),
    Row("refiner", "refiner", "Img2Img", lambda: {
        "image": noise(1, *CELLS), "denoising_start": 0.4, "num_inference_steps": 6,
        "aesthetic_score": 7.5, "negative_aesthetic_score": 1.0}),
    Row("refiner, in the middle", "refiner", "Img2Img", lambda: {
        "image": noise(1, *CELLS), "denoising_start": 0.2, "denoising_end": 0.7, "num_inference_steps": 8}),
    Row("img2img, timesteps", "sdxl", "Img2Img", lambda: {
        "image": picture(), "strength": 0.9, "timesteps": [999, 700, 400, 100]}, scheduler("EulerDiscreteScheduler")),
    Row("img2img, callback", "sdxl", "Img2Img", lambda: {
        "image": picture(), "strength": 0.9, **on_step_end(more_guidance)()}),
    Row("inpaint", "sdxl", "Inpaint", lambda: {"image": picture(), "mask_image": mask(), "output_type": "pil"}),
    Row("inpaint, strength", "sdxl", "Inpaint", lambda: {"image": picture(), "mask_image": mask(), "strength": 0.7}),
    Row("inpaint, own size", "sdxl", "Inpaint", lambda: {
        "image": picture(100, 90), "mask_image": mask(100, 90), "height": 160, "width": 96, "strength": 1.0}),
    Row("inpaint, crop", "sdxl", "Inpaint", lambda: {
        "image": picture(), "mask_image": mask(), "padding_mask_crop": 8, "output_type": "pil", "strength": 0.9}),
    Row("inpaint, latents", "sdxl", "Inpaint", lambda: {
        "image": picture(), "mask_image": mask(), "latents": noise(1, *CELLS), "aesthetic_score": 5.0,
        "masked_image_latents": noise(1, *CELLS, seed=8)}),
    Row("inpaint, 9 channels", "sdxl-9", "Inpaint", lambda: {
        "image": picture(), "mask_image": mask(), "num_images_per_prompt": 2}, config=APART),
    Row("inpaint, callback", "sdxl-9", "Inpaint", lambda: {
        "image": picture(), "mask_image": mask(), **on_step_end(new_latents, "latents", "mask")()}),
    # Along a picture
    Row("ControlNet", "sdxl", "ControlNet", lambda: {
        "image": picture(), "controlnet_conditioning_scale": 0.7, "control_guidance_start": 0.1,
        "control_guidance_end": 0.9, "output_type": "pil"}),
    Row("ControlNet, batch, branches apart", "sdxl", "ControlNet", lambda: {
        "image": picture(), "prompt": ["a", "b"], "num_images_per_prompt": 2}, config=APART),
    Row("ControlNet, guess mode", "sdxl", "ControlNet", lambda: {"image": picture(), "guess_mode": True}),
    Row("ControlNet, guess mode, branches apart", "sdxl", "ControlNet", lambda: {
        "image": picture(), "guess_mode": True}, config=APART),
    Row("SD ControlNet", "sd15", "ControlNet", lambda: {"image": tensor(), "output_type": "pil"}),
    # LoRA around keys, values and convolutions
    Row("LoRA", "sdxl", setup=lora),
    Row("LoRA, scaled", "sdxl", call=lambda: {"cross_attention_kwargs": {"scale": 0.4}}, setup=lora),
    Row("LoRA, fused", "sdxl", setup=fused_lora, config=APART),
    Row("SD LoRA", "sd15", setup=lora),
    # Stable Diffusion 1 and 2
    Row("SD text", "sd15", call=lambda: {"negative_prompt": "blue", "output_type": "pil"}),
    Row("SD batch", "sd15", call=lambda: {"prompt": ["a", "b"], "num_images_per_prompt": 2}, config=APART),
    Row("SD embeddings", "sd15", call=lambda: {
        name: value for name, value in embeddings().items() if "pooled" not in name}),
    Row("SD PNDM", "sd15", call=lambda: {"num_inference_steps": 5}, setup=scheduler("PNDMScheduler")),
    Row("SD DPM-Solver", "sd15", setup=scheduler("DPMSolverMultistepScheduler")),
    Row("SD 2.1, v-prediction", "sd21", call=lambda: {"guidance_rescale": 0.7, "output_type": "np"}),
    Row("SD guidance distilled", "sd15-distilled", setup=scheduler("LCMScheduler")),
    Row("SD guidance ends", "sd15", call=on_step_end(SDCFGCutoffCallback(cutoff_step_ratio=0.25))),
    Row("SD safety checker", "sd15", call=lambda: {"num_images_per_prompt": 2, "output_type": "np"},
        setup=safety_checker),
    Row("SD tuple", "sd15", call=lambda: {"return_dict": False, "latents": noise(1, *CELLS)}),
    Row("SD img2img", "sd15", "Img2Img", lambda: {"image": picture(), "strength": 0.7, "output_type": "pil"}),
    Row("SD img2img, batch", "sd15", "Img2Img", lambda: {
        "image": tensor(2), "prompt": ["a", "b"], "strength": 0.9, "generator": [seeded(1), seeded(2)]}),
    Row("SD inpaint", "sd15", "Inpaint", lambda: {"image": picture(), "mask_image": mask(), "strength": 0.9}),
    Row("SD inpaint, 9 channels", "sd15-9", "Inpaint", lambda: {
        "image": picture(), "mask_image": mask(), "output_type": "pil", "padding_mask_crop": 8}),
    # Other types, against plain diffusers in the same one: rounding differs, and adds up over the steps.
    Row("float16", "sdxl", dtype=torch.float16, bound=2e-2),
    Row("bfloat16", "sdxl", dtype=torch.bfloat16, bound=1.5e-1),
    Row("float16, picture", "sdxl", call=lambda: {"output_type": "pt"}, dtype=torch.float16, bound=2e-2),
    Row("SD bfloat16, picture", "sd15", call=lambda: {"output_type": "pt"}, dtype=torch.bfloat16, bound=1.5e-1),
)  # fmt: skip


# --- running rows


def arguments(row: Row) -> dict[str, Any]:
    steps = LONGER if row.task else STEPS
    common = {"prompt": "a red house", "generator": seeded(), "num_inference_steps": steps, "output_type": "latent"}
    return common | row.call()


def taken(result: Any) -> list[torch.Tensor]:
    """The parts of what a pipeline returned."""
    parts = result if isinstance(result, tuple) else tuple(result.values())
    return [
        torch.stack([torch.from_numpy(np.array(image)) for image in part])
        if isinstance(part, list) and isinstance(part[0], Image.Image)
        else torch.as_tensor(np.asarray(part) if isinstance(part, list) else part)
        for part in parts
        if part is not None
    ]


@cache
def expected() -> list[list[torch.Tensor]]:
    """By plain diffusers on one device."""
    return side_by_side(plain, [(index,) for index in range(len(ALL_ROWS))])


def plain(index: int) -> list[torch.Tensor]:
    row = ALL_ROWS[index]
    pipe = tiny_pipeline(row.kind, row.task, row.dtype, own=row.setup is not None)
    if row.setup is not None:
        row.setup(pipe)
    call = arguments(row)
    if row.task != "Img2Img":
        call = {"height": HEIGHT, "width": WIDTH} | call
    return taken(pipe(**call))


def modes_of(row: Row, world: int) -> tuple[str, ...]:
    """Exact, and the stale ones whose turn it is."""
    return ("full_sync", *(STALE[ALL_ROWS.index(row) // PARTS % TURNS :: TURNS] if world == 2 else ()))


def rows_on_rank(part: int, world: int) -> list[dict[str, list[torch.Tensor]]]:
    """On a rank: the rows of one part, each in its modes."""
    import distri_engine
    from distri_engine import DistriConfig, open_mesh

    results: list[dict[str, list[torch.Tensor]]] = []
    config = DistriConfig(height=HEIGHT, width=WIDTH, warmup_steps=1, split_batch=False)
    with open_mesh(config) as mesh:
        for row in ALL_ROWS[part::PARTS]:
            plain = tiny_pipeline(row.kind, row.task, row.dtype, own=row.setup is not None)
            prefix = "DistriSDXL" if KINDS[row.kind][0].endswith("XL") else "DistriSD"
            made: dict[str, list[torch.Tensor]] = {}
            for mode in modes_of(row, world):
                wanted = config.replace(mode=mode, **row.config)
                if mode == "full_sync":
                    pipeline = getattr(distri_engine, f"{prefix}{row.task}Pipeline")(plain, wanted, mesh)
                    if row.setup is not None:
                        row.setup(pipeline)
                pipeline.distri_config = wanted
                try:
                    made[mode] = taken(pipeline(**arguments(row)))
                except Exception as error:
                    raise RuntimeError(f"row {row.name!r}, {mode}") from error
            results.append(made)
    return results


def differs(ours: torch.Tensor, theirs: torch.Tensor, bound: float) -> str:
    """What is wrong with `ours`; nothing if it equals `theirs` within rounding."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{tuple(ours.shape)} {ours.dtype} instead of {tuple(theirs.shape)} {theirs.dtype}"
    if ours.dtype == torch.bool:
        return "" if torch.equal(ours, theirs) else f"{ours} instead of {theirs}"
    if not torch.isfinite(ours.float()).all():
        return "not finite"
    if ours.dtype == torch.uint8:
        off = (ours.int() - theirs.int()).abs()
        share = (off.amax(dim=-1) > 0).float().mean().item()
        return "" if off.max() <= 1 and share < 1e-3 else f"{off.max()} of 255 off, on {share:.2%} of the pixels"
    if not theirs.any():
        return "not black" if ours.any() else ""
    distance = relative(ours, theirs)
    return "" if distance < bound else f"relative distance {distance:.1e}"


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """In dB, of the range of `theirs`."""
    a, b = ours.double(), theirs.double()
    return float(10 * torch.log10((b.max() - b.min()).clamp(min=1e-9) ** 2 / ((a - b) ** 2).mean().clamp(min=1e-30)))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("world", [2, 3, 4])
def test_every_row(world: int, part: int, measured: Callable[[str], None]) -> None:
    ranks = run_on_ranks(world, rows_on_rank, part, world)
    wrong = []
    for index, (row, theirs) in enumerate(zip(ALL_ROWS[part::PARTS], expected()[part::PARTS], strict=True)):
        likeness: list[str] = []
        for mode, ours in ranks[0][index].items():
            for rank in ranks[1:]:
                if not all(torch.equal(a, b) for a, b in zip(rank[index][mode], ours, strict=True)):
                    wrong.append(f"{row.name}, {mode}: the ranks differ")
            if row.name != "SD safety checker" and not all(part.any() for part in ours):
                wrong.append(f"{row.name}, {mode}: black")
            if len(ours) != len(theirs):
                wrong.append(f"{row.name}, {mode}: {len(ours)} parts instead of {len(theirs)}")
            elif mode == "full_sync" or row.always_exact:
                wrong += [
                    f"{row.name}, {mode}: {complaint}"
                    for a, b in zip(ours, theirs, strict=True)
                    if (complaint := differs(a, b, row.bound))
                ]
            else:
                wrong += [f"{row.name}, {mode}: not finite" for part in ours if not torch.isfinite(part.float()).all()]
                likeness.append(f"{mode} {psnr(ours[0], theirs[0]):.1f}")
        if likeness:
            measured(f"PSNR in dB, {world} ranks, {row.name}: {', '.join(likeness)}")
    assert not wrong, "\n".join(wrong)


# --- nothing is silently ignored


def test_every_argument_of_diffusers_is_accounted_for() -> None:
    import distri_engine
    from distri_engine.arguments import REFUSED_ARGUMENTS

    accounted = {"self", "kwargs", "height", "width", *REFUSED_ARGUMENTS}
    accounted |= {name for row in ALL_ROWS for name in arguments(row)}
    kinds = [
        getattr(distri_engine, name)
        for name in distri_engine.__all__
        if name.startswith("DistriSD") and name.endswith("Pipeline")
    ]
    assert len(kinds) == 8
    for kind in kinds:
        parameters = set(inspect.signature(kind.diffusers_class.__call__).parameters)
        assert parameters <= accounted, (kind, parameters - accounted)
