"""The pipelines around a call: what is refused, what fails, what is shared, and who loads the text encoders."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.gang import run_on_ranks
from tests.support.models import DEMO_MODEL, relative
from tests.support.pipelines import tiny_pipeline

CALL: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}
PROMPT = "a white lighthouse on green hills"


def said(call: Callable[[], object]) -> str:
    """The class and the words of what `call` raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


# --- refusals


def test_what_has_no_parallel_form_is_refused_by_name() -> None:
    from distri_engine import DistriConfig, DistriSDXLPipeline, UnsupportedError
    from distri_engine.arguments import REFUSED_ARGUMENTS
    from distri_engine.pipelines import REFUSED_METHODS

    pipeline = DistriSDXLPipeline(tiny_pipeline("sdxl"), DistriConfig(height=64, width=64))
    for name in REFUSED_ARGUMENTS:
        with pytest.raises(UnsupportedError, match=rf"^{name} is not supported under patch parallelism"):
            pipeline("x", **{name: 3.0})
    for name in REFUSED_METHODS:
        with pytest.raises(UnsupportedError, match=rf"^{name} has no form under patch parallelism"):
            getattr(pipeline, name)()
    with pytest.raises(UnsupportedError, match=r"^gligen is not supported"):
        pipeline("x", cross_attention_kwargs={"gligen": {}})
    with pytest.raises(TypeError, match=r"^guidance is not an argument of StableDiffusionXLPipeline"):
        pipeline("x", guidance=5.0)
    for name in ("device_map", "custom_pipeline", "enable_pag"):
        with pytest.raises(UnsupportedError, match=rf"^{name} is not supported"):
            DistriSDXLPipeline.from_pretrained(
                str(DEMO_MODEL), distri_config=pipeline.distri_config, **{name: "balanced"}
            )
    with pytest.raises(ValueError, match=r"unknown text_encoder_on 'rank1'; choose one of: rank0, all"):
        DistriSDXLPipeline(tiny_pipeline("sdxl"), pipeline.distri_config, text_encoder_on="rank1")
    with pytest.raises(ValueError, match=r"callback_on_step_end_tensor_inputs 'noise' is unknown; choose of: latents"):
        pipeline("x", callback_on_step_end=print, callback_on_step_end_tensor_inputs=["noise"])
    for wrong, sentence in (
        ({"num_inference_steps": 0}, "num_inference_steps 0 is out of range; give a number from 1 to 1000"),
        ({"num_inference_steps": 2.5}, "num_inference_steps 2.5 is not a whole number"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt 0 is out of range"),
        ({"prompt": []}, "the list of prompts is empty; give at least one prompt"),
        ({"generator": 7}, "generator 7 is no torch.Generator; pass torch.Generator"),
        ({"cross_attention_kwargs": 3}, "cross_attention_kwargs 3 is not a dictionary"),
        ({"callback_on_step_end": 3}, "callback_on_step_end 3 is not a function"),
        ({"latents": torch.zeros(4, 8, 8)}, r"latents \[4, 8, 8\] are not a tensor of 4 dimensions"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            pipeline(**({"prompt": "x"} | wrong))
    pipeline.scheduler.register_to_config(noise_sampler_seed=None)
    with pytest.raises(ValueError, match="DDIMScheduler draws its noise apart on every rank"):
        pipeline("x")
    assert pipeline.to("cpu") is pipeline
    pipeline.enable_vae_tiling()
    pipeline.enable_vae_slicing()
    assert pipeline.vae.use_tiling
    assert pipeline.vae.use_slicing
    pipeline.disable_vae_tiling()
    pipeline.disable_vae_slicing()
    assert not pipeline.vae.use_tiling
    assert not pipeline.vae.use_slicing


def test_latents_need_no_vae() -> None:
    """As in plain diffusers, where a refiner takes over before anything is decoded."""
    from diffusers import StableDiffusionXLPipeline

    from distri_engine import DistriConfig, DistriSDXLPipeline

    plain = StableDiffusionXLPipeline.from_pretrained(DEMO_MODEL, vae=None)
    ours = DistriSDXLPipeline.from_pretrained(DistriConfig(height=64, width=64), DEMO_MODEL, vae=None)
    size = {"height": 64, "width": 64}
    expected, made = (pipe(PROMPT, generator=seeded(), **size, **CALL).images for pipe in (plain, ours))
    assert relative(made, expected) < 1e-5
    with pytest.raises(ValueError, match=r"^a picture needs a vae, and this pipeline has none; pass output_type="):
        ours(PROMPT, num_inference_steps=3)
    begin = torch.randn(1, 4, 8, 8, generator=seeded())
    expected, made = (pipe(PROMPT, latents=begin, **size, **CALL).images for pipe in (plain, ours))
    assert relative(made, expected) < 1e-5
    with pytest.raises(AttributeError, match=r"^enable_vae_tiling needs a vae, and this pipeline has none; load one"):
        ours.enable_vae_tiling()


def test_starting_from_a_picture_needs_a_vae() -> None:
    from distri_engine import DistriConfig, DistriSDXLImg2ImgPipeline

    ours = DistriSDXLImg2ImgPipeline.from_pretrained(DistriConfig(height=64, width=64), DEMO_MODEL, vae=None)
    with pytest.raises(ValueError, match=r"^starting from a picture needs a vae, and this pipeline has none; load one"):
        ours(PROMPT, image=Image.new("RGB", (64, 64)), **CALL)


def test_a_pipeline_of_another_kind_is_one_sentence() -> None:
    from diffusers import StableDiffusionXLPAGPipeline

    from distri_engine import DistriConfig, DistriSDPipeline, DistriSDXLImg2ImgPipeline, DistriSDXLPipeline

    config = DistriConfig(height=64, width=64)
    plain = tiny_pipeline("sdxl")
    with pytest.raises(ValueError, match=r"not a StableDiffusionXLImg2ImgPipeline; use DistriSDXLImg2ImgPipeline$"):
        DistriSDXLPipeline(tiny_pipeline("sdxl", "Img2Img"), config)
    pag = StableDiffusionXLPAGPipeline(**{name: part for name, part in plain.components.items() if part is not None})
    with pytest.raises(ValueError, match="not a StableDiffusionXLPAGPipeline; use the diffusers pipeline"):
        DistriSDXLPipeline(pag, config)
    mixed = tiny_pipeline("sd15")
    mixed.unet = plain.unet
    with pytest.raises(ValueError, match="cannot run the UNet of SDXL; use the class of the same name for SDXL"):
        DistriSDPipeline(mixed, config)
    with pytest.raises(ValueError, match="has no text_encoder_2 for a StableDiffusionXLImg2ImgPipeline"):
        DistriSDXLImg2ImgPipeline.from_pipe(DistriSDPipeline(tiny_pipeline("sd15"), config))
    with pytest.raises(TypeError, match="from_pretrained needs pretrained_model_name_or_path"):
        DistriSDPipeline.from_pretrained(distri_config=config)


def test_sizes_are_those_of_what_is_given() -> None:
    from distri_engine import DistriConfig, DistriSDXLImg2ImgPipeline, DistriSDXLInpaintPipeline, DistriSDXLPipeline

    config = DistriConfig(height=64, width=64)
    from_picture = DistriSDXLImg2ImgPipeline(tiny_pipeline("sdxl", "Img2Img"), config)
    made = from_picture("x", image=Image.new("RGB", (101, 96)), strength=0.9, **CALL).images
    assert made.shape == (1, 4, 12, 12)  # 101 pixels count as 96, as in diffusers
    with pytest.raises(ValueError, match="width 88 is not a multiple of 16; nearest: 80 or 96"):
        from_picture("x", image=Image.new("RGB", (90, 96)))
    with pytest.raises(ValueError, match="a picture is a PIL image, an array or a tensor, or a list of them, not 'x"):
        from_picture("x", image="x.png")
    inpaint = DistriSDXLInpaintPipeline(tiny_pipeline("sdxl", "Inpaint"), config)
    assert inpaint("x", image=Image.new("RGB", (96, 128)), mask_image=Image.new("L", (96, 128), 255), **CALL).images[
        0
    ].shape == (4, 16, 12)
    pipeline = DistriSDXLPipeline(tiny_pipeline("sdxl"), config)
    assert pipeline("x", latents=torch.randn(1, 4, 16, 12), **CALL).images.shape == (1, 4, 16, 12)
    with pytest.raises(ValueError, match="height 72 is not a multiple of 16"):
        pipeline("x", latents=torch.randn(1, 4, 9, 12), height=96)


# --- on ranks


def faults(_: int) -> dict[str, Any]:
    """On a rank: what callbacks that fail say, and that the next picture is none the worse; guidance that changes."""
    from distri_engine import DistriConfig, DistriSDXLPipeline, open_mesh

    config = DistriConfig(height=128, width=64, warmup_steps=0, split_batch=False)
    with open_mesh(config) as mesh:
        pipeline = DistriSDXLPipeline(tiny_pipeline("sdxl"), config, mesh)

        def latents(**how: Any) -> torch.Tensor:
            return pipeline(PROMPT, generator=seeded(), **CALL, **how).images

        def fail(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == 1:
                raise OSError("disk full")
            return {}

        def fail_legacy(step: int, timestep: Any, latents: torch.Tensor) -> None:
            raise OSError("disk full")

        def rescale(pipe: Any, *_: Any) -> dict[str, Any]:
            pipe._cross_attention_kwargs = {"scale": 0.5}
            return {}

        def not_a_tensor(*_: Any) -> dict[str, Any]:
            return {"latents": None}

        def predict(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            pipe.unet(tensors["latents"], timestep, None)
            return {}

        def smaller(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"latents": tensors["latents"][..., :-4, :]}

        def too_narrow(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            return {"prompt_embeds": tensors["prompt_embeds"][..., :-1]} if step == 1 else {}

        before = latents()
        wrong = {
            "fails": {"callback_on_step_end": fail},
            "older kind fails": {"callback": fail_legacy},
            "returns nothing": {"callback_on_step_end": lambda *_: None},
            "scales attention": {"callback_on_step_end": rescale},
            "no tensor": {"callback_on_step_end": not_a_tensor},
            "calls the UNet": {"callback_on_step_end": predict},
            "another size": {"callback_on_step_end": smaller},
            "fails in a layer": {
                "callback_on_step_end": too_narrow,
                "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
            },
        }
        results: dict[str, Any] = {name: said(lambda how=how: latents(**how)) for name, how in wrong.items()}
        results["unchanged"] = torch.equal(latents(), before)
        # Every method of a kind without text encoders on the other ranks, and without a generator.
        if mesh.rank:
            pipeline.text_encoder = pipeline.text_encoder_2 = None
        results["told"] = torch.equal(latents(), before)
        results["unseeded"] = pipeline(PROMPT, **CALL).images
        for kind in ("sdxl", "sdxl-distilled"):
            pipeline = DistriSDXLPipeline(tiny_pipeline(kind, own=True), config, mesh)
            pipeline.prepare()
    return results


def test_a_failing_callback_raises_on_every_rank() -> None:
    first, second = run_on_ranks(2, faults, 0)
    expected = {
        "fails": "OSError: disk full",
        "older kind fails": "OSError: disk full",
        "returns nothing": "TypeError: callback_on_step_end returned None; return a dictionary, at least {}",
        "scales attention": "UnsupportedError: a callback cannot change cross_attention_kwargs on all ranks; "
        "use set_adapters before the picture",
        "calls the UNet": "UnsupportedError: a callback runs on rank 0 and cannot call the UNet, "
        "which all ranks run together",
        "no tensor": "UnsupportedError: a callback can change latents on all ranks to a tensor only, not to None",
    }
    for name, sentence in expected.items():
        assert first[name] == sentence
        assert second[name] == f"MeshError: rank 0 refused: {sentence}"
    for rank in (first, second):
        assert rank["another size"].startswith("ValueError: latents changed from ")
        assert rank["fails in a layer"].startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
        assert rank["unchanged"]
        assert rank["told"]
    assert torch.equal(first["unseeded"], second["unseeded"])


def chain(_: int) -> dict[str, Any]:
    """On a rank: base and refiner, the second made from the first; then the first is forgotten."""
    from distri_engine import DistriConfig, DistriSDXLImg2ImgPipeline, DistriSDXLInpaintPipeline, DistriSDXLPipeline

    config = DistriConfig(height=128, width=64, mode="full_sync")
    base = DistriSDXLPipeline(tiny_pipeline("sdxl"), config)
    base.watermark = None
    refiner = DistriSDXLImg2ImgPipeline.from_pipe(base)
    results: dict[str, Any] = {"unet shared": refiner.pipeline.unet is base.pipeline.unet}
    results["vae shared"] = refiner.vae is base.vae
    results["mesh shared"] = refiner.mesh is base.mesh
    results["weights"] = all(
        a.data_ptr() == b.data_ptr()
        for a, b in zip(base.unet.parameters(), tiny_pipeline("sdxl").unet.parameters(), strict=True)
    )
    latents = base(PROMPT, generator=seeded(), denoising_end=0.5, num_inference_steps=6, output_type="latent").images
    base.close()  # the other still needs the group
    del base
    gc.collect()
    again: dict[str, Any] = {"generator": seeded(), "denoising_start": 0.5, "num_inference_steps": 6}
    results["picture"] = refiner(PROMPT, image=latents, output_type="pt", **again).images
    inpaint = DistriSDXLInpaintPipeline.from_pipe(refiner)
    refiner = None
    gc.collect()
    picture = {"image": Image.new("RGB", (64, 128)), "mask_image": Image.new("L", (64, 128), 255)}
    results["inpainted"] = inpaint(PROMPT, **picture, generator=seeded(), **CALL).images
    inpaint.close()
    results["left"] = not torch.distributed.is_initialized()
    return results


def test_pipelines_share_components_and_the_group() -> None:
    plain = tiny_pipeline("sdxl")
    plain.set_progress_bar_config(disable=True)
    latents = plain(
        PROMPT, generator=seeded(), denoising_end=0.5, num_inference_steps=6, output_type="latent", height=128, width=64
    ).images
    picture = tiny_pipeline("sdxl", "Img2Img")(
        PROMPT, image=latents, generator=seeded(), denoising_start=0.5, num_inference_steps=6, output_type="pt"
    ).images
    for results in run_on_ranks(2, chain, 0):
        assert all(results[name] for name in ("unet shared", "vae shared", "mesh shared", "weights", "left")), results
        assert relative(results["picture"], picture) < 5e-6
        assert results["inpainted"].isfinite().all()


def text_everywhere(_: int) -> dict[str, Any]:
    """On a rank: the embedded model with text encoders on rank 0 and on all ranks, by pipeline and engine."""
    import numpy as np

    from distri_engine import DistriConfig, DistriSDXLPipeline, Engine, GenerationRequest, open_mesh
    from distri_engine.mesh import current_rank
    from distri_engine.telemetry import Finished

    config = DistriConfig(height=128, width=64, warmup_steps=0)
    results: dict[str, Any] = {}
    with open_mesh(config) as mesh:
        for where in ("rank0", "all"):
            pipeline = DistriSDXLPipeline.from_pretrained(str(DEMO_MODEL), distri_config=config, text_encoder_on=where)
            pipeline.set_progress_bar_config(disable=True)
            told: list[Any] = []
            broadcast = pipeline.mesh.broadcast
            pipeline.mesh.broadcast = lambda *what, told=told, broadcast=broadcast: (
                told.append(what) or broadcast(*what)
            )
            results[where] = pipeline(PROMPT, negative_prompt="blue", generator=seeded(), **CALL).images
            results[f"{where} told"] = len(told)
            results[f"{where} loaded"] = pipeline.text_encoder is not None and pipeline.text_encoder_2 is not None
            pipeline.close()
            engine = Engine(str(DEMO_MODEL), device="cpu", rank=current_rank(), text_encoder_on=where)
            engine.attach(mesh)
            request = GenerationRequest(prompt=PROMPT, height=128, width=64, steps=3, seed=1)
            for event in engine.generate(request, config):
                if isinstance(event, Finished) and event.images:
                    results[f"{where} engine"] = np.asarray(event.images[0])
    return results


def test_text_encoders_on_rank_0_or_on_all() -> None:
    first, second = run_on_ranks(2, text_everywhere, 0)
    assert (first["rank0 loaded"], second["rank0 loaded"]) == (True, False)
    assert first["all loaded"]
    assert second["all loaded"]
    for rank in (first, second):
        assert (rank["rank0 told"], rank["all told"]) == (1, 0)
        assert torch.equal(rank["rank0"], rank["all"])
    assert (first["rank0 engine"] == first["all engine"]).all()


def with_lora(_: int) -> tuple[torch.Tensor, torch.Tensor]:
    """On a rank: latents before and after a LoRA was loaded through the wrapper."""
    from distri_engine import DistriConfig, DistriSDXLPipeline, open_mesh

    config = DistriConfig(height=128, width=64, mode="full_sync", split_batch=False)
    with open_mesh(config) as mesh:
        pipeline = DistriSDXLPipeline(tiny_pipeline("sdxl", own=True), config, mesh)
        before = pipeline(PROMPT, generator=seeded(), **CALL).images
        pipeline.load_lora_weights(lora())
        return before, pipeline(PROMPT, generator=seeded(), **CALL).images


def lora() -> dict[str, torch.Tensor]:
    where = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    generator = torch.Generator().manual_seed(9)
    shapes = {"lora_A": (2, 64), "lora_B": (64, 2)}
    return {f"{where}.{part}.weight": torch.randn(shape, generator=generator) for part, shape in shapes.items()}


def test_loras_reach_the_wrapped_pipeline() -> None:
    plain = tiny_pipeline("sdxl", own=True)
    plain.load_lora_weights(lora())
    expected = plain(PROMPT, generator=seeded(), height=128, width=64, **CALL).images
    for before, after in run_on_ranks(2, with_lora, 0):
        assert relative(before, expected) > 1e-4
        assert relative(after, expected) < 5e-6


def inverted(world: int) -> torch.Tensor:
    """On a rank: a picture of a word that textual inversion has taught; plain diffusers' for a world of none."""
    from distri_engine import DistriConfig, DistriSDPipeline, open_mesh

    config = DistriConfig(height=64, width=64, mode="full_sync", split_batch=False)
    word = {"<moss>": torch.randn(1, 48, generator=seeded())}
    call = {"prompt": "a <moss> house", "generator": seeded(), "num_inference_steps": 2, "output_type": "latent"}
    plain = tiny_pipeline("sd15", own=True)
    plain.tokenizer = copy.deepcopy(plain.tokenizer)  # the others are to know no new word
    if not world:
        plain.load_textual_inversion(word)
        return plain(height=64, width=64, **call).images
    with open_mesh(config) as mesh:
        if mesh.rank:
            plain.text_encoder = plain.tokenizer = None
        pipeline = DistriSDPipeline(plain, config, mesh)
        pipeline.load_textual_inversion(word)
        return pipeline(**call).images


def test_textual_inversion_is_for_rank_0() -> None:
    expected = inverted(0)
    for ours in run_on_ranks(2, inverted, 2):
        assert relative(ours, expected) < 5e-6
