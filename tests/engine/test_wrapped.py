"""What users do around the wrapped model: gradients on, inference mode, processors, fused projections, components."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.gang import run_on_ranks
from tests.support.models import relative, sdxl_inputs, tiny_embeddings, tiny_sdxl_pipeline, tiny_sdxl_unet


def inputs_at(step: int) -> dict[str, Any]:
    first = sdxl_inputs(2, 16, 16)
    return first | {"sample": first["sample"] * (1 - 0.1 * step), "timestep": 900 - 100 * step}  # type: ignore[operator]


def every_grad_mode(_: int) -> list[torch.Tensor]:
    """On a rank: three stale steps with gradients enabled, in inference mode, and without gradients."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    config = DistriConfig(warmup_steps=0, split_batch=False)
    last = []
    with open_mesh(config) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), config, mesh)
        for context in (torch.enable_grad(), torch.inference_mode(), torch.no_grad()):
            with context:
                unet.begin()
                last.append([unet(**inputs_at(step)).sample for step in range(3)][-1].clone())
                unet.end()
    return last


def test_grad_mode_does_not_matter() -> None:
    for outputs in run_on_ranks(2, every_grad_mode, 0):
        assert torch.equal(outputs[0], outputs[2])
        assert torch.equal(outputs[1], outputs[2])


class Doubled:
    """An attention processor that can be told from the default one."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        from diffusers.models.attention_processor import AttnProcessor2_0

        return 2 * AttnProcessor2_0()(attn, hidden_states, *args, **kwargs)


def changed_model(_: int) -> list[Any]:
    """On a rank: pictures before and after changes to the wrapped model, and what is refused."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    from distri_engine import DistriConfig, EngineError, ParallelUNet, UnsupportedError, open_mesh

    config = DistriConfig(mode="full_sync", split_batch=False)
    results: list[Any] = []
    with torch.no_grad(), open_mesh(config) as mesh:
        plain = tiny_sdxl_unet()
        unet = ParallelUNet(plain, config, mesh)

        def distance() -> float:
            unet.begin()
            made = unet(**inputs_at(0)).sample
            unet.end()
            return relative(made, plain(**inputs_at(0)).sample)

        def refusal() -> str:
            unet.begin()
            try:
                unet(**inputs_at(0))
            except UnsupportedError as error:
                return str(error)
            return "not refused"

        results.append(distance())
        unet.set_attn_processor(Doubled())
        results.append(distance())
        plain.conv_out.weight.data *= 3
        results.append(distance())
        plain.up_blocks[0].resnets[0].conv1 = torch.nn.Conv2d(128, 64, 3, padding=1)
        results.append(distance())
        plain.set_attn_processor(AttnProcessor2_0())
        plain.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        results.append(refusal())
        plain.disable_freeu()
        plain.fuse_qkv_projections()
        results.append(refusal())
        plain.unfuse_qkv_projections()
        plain.down_blocks[0].forward = plain.down_blocks[0].forward
        results.append(refusal())
        del plain.down_blocks[0].forward
        results.append(distance())
        try:
            unet(**inputs_at(0))
        except EngineError as error:
            results.append(str(error))
        plain.down_blocks[1].compile(backend="eager")
        results.append(refusal())
    return results


def test_changes_of_the_model_are_seen_or_refused() -> None:
    for results in run_on_ranks(2, changed_model, 0):
        *seen, freeu, fused, hooked, again, over, compiled = results
        assert all(distance < 5e-6 for distance in (*seen, again))
        assert "uses FreeU" in freeu
        assert "fused projections" in fused
        assert hooked.startswith("down_blocks.0 has a hook around its forward")
        assert over.startswith("the last picture has ended; call begin() before the next one")
        assert compiled.startswith("down_blocks.1 is compiled, and what is compiled cannot be patched")


def pipeline_uses(_: int) -> dict[str, Any]:
    """On a rank: components replaced through the wrapper, stochastic samplers, errors that only rank 0 can see."""
    from diffusers import EulerDiscreteScheduler

    from distri_engine import DistriConfig, DistriSDXLPipeline, EngineError

    config = DistriConfig(height=64, width=64, mode="full_sync", split_batch=False)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": 3, "latents": latents, "output_type": "latent"}
    first = DistriSDXLPipeline(tiny_sdxl_pipeline(), config)
    first.set_progress_bar_config(disable=True)
    first.prepare()
    results: dict[str, Any] = {"ddim": first(**tiny_embeddings(), **call).images}
    first.scheduler = EulerDiscreteScheduler.from_config(first.scheduler.config)
    results["euler"] = first(**tiny_embeddings(), **call).images
    results["unguided"] = first(**tiny_embeddings(), **call, guidance_scale=1.0).images
    pipeline = DistriSDXLPipeline(tiny_sdxl_pipeline(), config)
    first.close()  # must leave the group open for the second
    pipeline.set_progress_bar_config(disable=True)
    results["eta"] = pipeline(**tiny_embeddings(), **call, eta=1.0).images
    said = []
    for wrong in ({"prompt": "x"}, {}, {"height": 0}, {"guidance_scale": None}):
        try:
            pipeline(**wrong, num_inference_steps=1)
        except (ValueError, EngineError, AttributeError, TypeError) as error:
            said.append(f"{type(error).__name__}: {error}")
    results["said"] = said
    results["after"] = pipeline(**tiny_embeddings(), **call).images
    pipeline.close()
    return results


def test_pipeline_wrapper() -> None:
    from diffusers import EulerDiscreteScheduler

    plain = tiny_sdxl_pipeline()
    plain.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {"num_inference_steps": 3, "latents": latents, "output_type": "latent"}
    call |= {"height": 64, "width": 64}
    expected = {"ddim": plain(**tiny_embeddings(), **call).images}
    plain.scheduler = EulerDiscreteScheduler.from_config(plain.scheduler.config)
    expected["euler"] = plain(**tiny_embeddings(), **call).images
    expected["unguided"] = plain(**tiny_embeddings(), **call, guidance_scale=1.0).images
    first, second = run_on_ranks(2, pipeline_uses, 0)
    for name, images in expected.items():
        assert relative(first[name], images) < 5e-6, name
    assert relative(first["after"], expected["ddim"]) < 5e-6
    assert torch.equal(first["eta"], second["eta"])  # noise between steps: the ranks drew the same
    # There is no text encoder here, which only rank 0 finds out; the other one is told.
    assert second["said"][0].startswith("MeshError: rank 0 refused: ")
    for rank in (first, second):
        assert rank["said"][1] == "ValueError: the prompt is missing; pass prompt or prompt_embeds"
        assert rank["said"][2].startswith("ValueError: height 0 is not a positive multiple of 32")
        assert rank["said"][3] == "ValueError: guidance_scale None is not a number; 5 is usual"


def test_without_a_group_everything_is_a_mesh_of_one() -> None:
    from distri_engine import DistriConfig, DistriSDXLPipeline

    pipeline = DistriSDXLPipeline(tiny_sdxl_pipeline(), DistriConfig(height=64, width=64))
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(**tiny_embeddings(), num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
    with pytest.raises(ValueError, match="needs do_classifier_free_guidance=True"):
        DistriSDXLPipeline(tiny_sdxl_pipeline(), DistriConfig(do_classifier_free_guidance=False))(
            **tiny_embeddings(), guidance_scale=5.0
        )
    with pytest.raises(TypeError, match="needs distri_config"):
        DistriSDXLPipeline.from_pretrained("somewhere")
