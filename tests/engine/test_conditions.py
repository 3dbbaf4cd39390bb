"""ControlNets, T2I-Adapters and IP-Adapters on N ranks: exact with fresh activations, the paper's arithmetic in every
mode, and refused by name where there is no form on patches.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distri_engine.bands import split_units
from tests.support.gang import run_on_ranks
from tests.support.models import (
    relative,
    sdxl_inputs,
    tiny_controlnet,
    tiny_embeddings,
    tiny_sd15_unet,
    tiny_sdxl_pipeline,
    tiny_sdxl_unet,
    tiny_vae,
)
from tests.support.reference import reference_steps

MODES = ("full_sync", "sync_gn", "stale_gn", "corrected_async_gn", "separate_gn", "no_sync")
WARMUP, STEPS = 0, 3
HEIGHT, WIDTH = 28, 16  # latent cells: uneven bands for 2 and 3 ranks


def draw(*shape: int, seed: int = 11) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def inputs_at(step: int) -> dict[str, Any]:
    first = sdxl_inputs(2, HEIGHT, WIDTH)
    other = sdxl_inputs(2, HEIGHT, WIDTH, seed=2)["sample"]
    return first | {"sample": first["sample"] * (1 - 0.06 * step) + 0.08 * step * other, "timestep": 900 - 60 * step}  # type: ignore[operator]


class Joint(nn.Module):
    """A UNet and the ControlNet that steers it."""

    def __init__(self, unet: Any, controlnet: Any) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    def forward(
        self, condition: torch.Tensor, scale: float = 0.8, *, guess_mode: bool = False, **inputs: Any
    ) -> tuple[torch.Tensor]:
        return_dict = inputs.pop("return_dict", False)
        settings = {"conditioning_scale": scale, "guess_mode": guess_mode, "return_dict": return_dict}
        down, mid = self.controlnet(**inputs, controlnet_cond=condition, **settings)
        return self.unet(
            **inputs,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
            return_dict=return_dict,
        )


CONDITION = draw(2, 3, 8 * HEIGHT, 8 * WIDTH)
STEERED = [inputs_at(step) | {"condition": CONDITION} for step in range(STEPS)]


# --- every mode


def steered_in_modes(modes: tuple[str, ...]) -> list[list[torch.Tensor]]:
    """On a rank: the outputs of every step, one picture a mode."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh, parallel_controlnet

    results = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        joint = Joint(unet, parallel_controlnet(tiny_controlnet(tiny_sdxl_unet()), unet))
        for mode in modes:
            unet.begin(DistriConfig(mode=mode, warmup_steps=WARMUP, split_batch=False, comm_checkpoint=9))
            results.append([joint(**inputs)[0] for inputs in STEERED])
            unet.end()
    return results


@pytest.mark.parametrize(("world", "modes"), [(2, MODES[:4:3]), (3, MODES)])
def test_a_controlnet_keeps_the_unets_pace_in_every_mode(world: int, modes: tuple[str, ...]) -> None:
    per_rank = run_on_ranks(world, steered_in_modes, modes)
    plain = Joint(tiny_sdxl_unet(), tiny_controlnet(tiny_sdxl_unet()))
    with torch.no_grad():
        exact = [plain(**inputs)[0] for inputs in STEERED]
        bare = plain.unet(**inputs_at(0)).sample
    assert relative(bare, exact[0]) > 0.1  # the condition matters
    rows = [4 * share for share in split_units(HEIGHT // 4, world)]
    for index, mode in enumerate(modes):
        expected = reference_steps(plain, rows, STEERED, mode=mode, warmup=WARMUP, bessel=False)
        for step in range(STEPS):
            for rank, results in enumerate(per_rank):
                assert relative(results[index][step], expected[step]) < 5e-6, (mode, step, rank)
                assert torch.equal(results[index][step], per_rank[0][index][step])
            fresh = mode == "full_sync" or step <= WARMUP
            assert (relative(per_rank[0][index][step], exact[step]) < 5e-6) == fresh, (mode, step)
        print(f"{world} ranks, {mode}: last step {relative(per_rank[0][index][-1], exact[-1]):.1e} from one device")


def pooled_steps(modes: tuple[str, ...]) -> list[torch.Tensor]:
    """On a rank: the last of four steps whose inputs are the same, with a ControlNet whose residuals are averages."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh, parallel_controlnet

    last = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        joint = Joint(unet, parallel_controlnet(net(global_pool_conditions=True), unet))
        for mode in modes:
            unet.begin(DistriConfig(mode=mode, warmup_steps=0, split_batch=False))
            last.append([joint(**STEERED[0], guess_mode=True)[0] for _ in range(4)][-1])
            unet.end()
    return last


def test_pooled_residuals_in_stale_steps() -> None:
    """Stale is fresh if nothing changes; also foreseen."""
    modes = ("stale_gn", "corrected_async_gn", "extrapolated")
    plain = Joint(tiny_sdxl_unet(), net(global_pool_conditions=True))
    with torch.no_grad():
        exact = plain(**STEERED[0], guess_mode=True)[0]
    for results in run_on_ranks(2, pooled_steps, modes):
        for mode, made in zip(modes, results, strict=True):
            assert relative(made, exact) < 5e-6, mode


# --- every kind of condition. Each case: (the UNet, what becomes of a ControlNet) -> the UNet's output at one step.


def net(seed: int = 7, **changes: Any) -> Any:
    made = tiny_controlnet(tiny_sdxl_unet(), seed)
    made.register_to_config(**changes)
    return made


def steer(unet: Any, down: Any, mid: Any) -> torch.Tensor:
    return unet(**inputs_at(0), down_block_additional_residuals=down, mid_block_additional_residual=mid).sample


def two_nets(unet: Any, parallel: Any) -> torch.Tensor:
    from diffusers import MultiControlNetModel

    both = parallel(MultiControlNetModel([net(), net(seed=8, controlnet_conditioning_channel_order="bgr")]))
    images = [CONDITION, draw(1, 3, 8 * HEIGHT, 8 * WIDTH, seed=12)]
    return steer(unet, *both(**inputs_at(0), controlnet_cond=images, conditioning_scale=[0.7, 0.4], return_dict=False))


def guessing(unet: Any, parallel: Any, **changes: Any) -> torch.Tensor:
    """As pipelines do it: the ControlNet sees the conditional branch, the other one gets zeros."""
    inputs = inputs_at(0)
    half = {name: value[1:] for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    half["added_cond_kwargs"] = {name: value[1:] for name, value in inputs["added_cond_kwargs"].items()}
    made = parallel(net(**changes))(**half, timestep=900, controlnet_cond=CONDITION[1:], guess_mode=True)
    down = [torch.cat([torch.zeros_like(part), part]) for part in made.down_block_res_samples]
    return steer(unet, down, torch.cat([torch.zeros_like(made.mid_block_res_sample), made.mid_block_res_sample]))


def pooled(unet: Any, parallel: Any) -> torch.Tensor:
    return guessing(unet, parallel, global_pool_conditions=True)


def switched_off(unet: Any, parallel: Any) -> torch.Tensor:
    """Before control_guidance_start and after its end."""
    made = parallel(net())(**inputs_at(0), controlnet_cond=CONDITION, conditioning_scale=0.0, return_dict=False)
    return steer(unet, *made)


def unwrapped_net(unet: Any, parallel: Any) -> torch.Tensor:
    """Residuals of the whole picture, which the caller made himself."""
    return steer(unet, *net()(**inputs_at(0), controlnet_cond=CONDITION, return_dict=False))


def adapter_residuals() -> list[torch.Tensor]:
    """What a T2I-Adapter of SDXL makes for this UNet: one feature a level, and one for the middle."""
    halves, quarters = (HEIGHT // 2, WIDTH // 2), (HEIGHT // 4, WIDTH // 4)
    shapes = ((32, *halves), (64, *halves), (64, *quarters), (64, *quarters))
    return [draw(2, *shape, seed=20 + index) for index, shape in enumerate(shapes)]


def adapter(unet: Any, parallel: Any) -> torch.Tensor:
    return unet(**inputs_at(0), down_intrablock_additional_residuals=adapter_residuals()).sample


def adapter_and_net(unet: Any, parallel: Any) -> torch.Tensor:
    down, mid = parallel(net())(**inputs_at(0), controlnet_cond=CONDITION, return_dict=False)
    return unet(
        **inputs_at(0),
        down_block_additional_residuals=down,
        mid_block_additional_residual=mid,
        down_intrablock_additional_residuals=adapter_residuals(),
    ).sample


def image_prompt(unet: Any, parallel: Any) -> torch.Tensor:
    """An IP-Adapter: queries of the band meet the image's few tokens."""
    from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    torch.manual_seed(31)
    processors = {
        name: IPAdapterAttnProcessor2_0(_width_at(unet, name), cross_attention_dim=48, num_tokens=(4,), scale=[0.8])
        if "attn2" in name
        else AttnProcessor2_0()
        for name in sorted(unet.attn_processors)
    }
    unet.set_attn_processor(processors)
    wrapped = getattr(unet, "model", unet)
    wrapped.encoder_hid_proj = MultiIPAdapterImageProjection(
        [ImageProjection(image_embed_dim=16, cross_attention_dim=48, num_image_text_embeds=4)]
    )
    wrapped.register_to_config(encoder_hid_dim_type="ip_image_proj")
    inputs = inputs_at(0)
    inputs["added_cond_kwargs"]["image_embeds"] = [draw(2, 1, 16, seed=32)]
    return unet(**inputs).sample


def _width_at(unet: Any, name: str) -> int:
    return int(unet.get_submodule(name.removesuffix(".processor")).to_q.out_features)


CASES = (
    two_nets,
    guessing,
    pooled,
    switched_off,
    unwrapped_net,
    adapter,
    adapter_and_net,
    image_prompt,
)


def conditioned(configs: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    """On a rank: every case under every config."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh, parallel_controlnet

    results = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        for config in configs:
            made = {}
            for case in CASES:
                unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(**config), mesh)
                made[case.__name__] = case(unet, lambda nets, unet=unet: parallel_controlnet(nets, unet))
                unet.end()
            results.append(made)
    return results


BANDS, BRANCHES, ONE = {"split_batch": False}, {"split_batch": True}, {"parallelism": "single"}


@pytest.mark.parametrize(("world", "ways"), [(2, (BANDS, BRANCHES, ONE)), (3, (BANDS,)), (4, (BRANCHES,))])
def test_every_condition_equals_one_device(world: int, ways: tuple[dict[str, Any], ...]) -> None:
    configs = [{"mode": "full_sync"} | way for way in ways]
    per_rank = run_on_ranks(world, conditioned, configs)
    with torch.no_grad():
        bare = tiny_sdxl_unet()(**inputs_at(0)).sample
        expected = {case.__name__: case(tiny_sdxl_unet(), lambda nets: nets) for case in CASES}
    for name, picture in expected.items():
        assert (relative(picture, bare) > 0.01) == (name != "switched_off"), name
        for results in per_rank:
            for config, made in zip(configs, results, strict=True):
                assert relative(made[name], picture) < 5e-6, (name, config)


def naive_patches(_: int) -> list[torch.Tensor]:
    """On a rank: steps of naive patches with a ControlNet, rows and columns in turn."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh, parallel_controlnet

    config = DistriConfig(parallelism="naive_patch", split_scheme="alternate", split_batch=False)
    with torch.no_grad(), open_mesh(config) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), config, mesh)
        joint = Joint(unet, parallel_controlnet(tiny_controlnet(tiny_sdxl_unet()), unet))
        steps = [joint(**inputs)[0] for inputs in STEERED]
        unet.begin()
        return [*steps, adapter(unet, None)]


@torch.no_grad()
def test_naive_patches_get_their_part_of_every_condition() -> None:
    joint = Joint(tiny_sdxl_unet(), tiny_controlnet(tiny_sdxl_unet()))
    parts = {2: ((0, 16), (16, 28)), 3: ((0, 8), (8, 16))}  # dim -> edges of the two patches
    for results in run_on_ranks(2, naive_patches, 0):
        for step, inputs in enumerate(STEERED):
            dim = 2 if step % 2 == 0 else 3
            patches = [
                joint(
                    **inputs
                    | {
                        "sample": inputs["sample"].narrow(dim, low, high - low),
                        "condition": CONDITION.narrow(dim, 8 * low, 8 * (high - low)),
                    }
                )[0]
                for low, high in parts[dim]
            ]
            assert relative(results[step], torch.cat(patches, dim=dim)) < 5e-6, step
        bands = []
        for low, high in parts[2]:
            scales = (2, 2, 4, 4)
            residuals = [r[:, :, low // s : high // s] for r, s in zip(adapter_residuals(), scales, strict=True)]
            inputs = inputs_at(0) | {"sample": inputs_at(0)["sample"][:, :, low:high]}
            bands.append(joint.unet(**inputs, down_intrablock_additional_residuals=residuals).sample)
        assert relative(results[-1], torch.cat(bands, dim=2)) < 5e-6


# --- diffusers' pipelines


PIPELINE_CALL: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
PIPELINE_CALL |= {"height": 192, "width": 64}


def sdxl_pipeline() -> Any:
    from diffusers import StableDiffusionXLControlNetPipeline

    parts = tiny_sdxl_pipeline().components
    return StableDiffusionXLControlNetPipeline(
        **{name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")},
        controlnet=[net(), net(seed=8)],
        add_watermarker=False,
    )


def sd15_pipeline() -> Any:
    from diffusers import StableDiffusionControlNetPipeline

    return StableDiffusionControlNetPipeline(
        vae=tiny_vae(), text_encoder=None, tokenizer=None, unet=tiny_sd15_unet(), safety_checker=None,
        controlnet=tiny_controlnet(tiny_sd15_unet()), scheduler=tiny_sdxl_pipeline().scheduler, feature_extractor=None,
    )  # fmt: skip


def adapter_pipeline() -> Any:
    from diffusers import StableDiffusionXLAdapterPipeline, T2IAdapter

    torch.manual_seed(4)
    made = T2IAdapter(channels=[32, 64, 64, 64], num_res_blocks=1, downscale_factor=16, adapter_type="full_adapter_xl")
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0.0, 0.1)
    parts = tiny_sdxl_pipeline().components
    return StableDiffusionXLAdapterPipeline(
        **{name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")},
        adapter=made.eval(),
    )


def pictures_of(make_parallel: Any) -> dict[str, torch.Tensor]:
    """Latents of three pipelines; `make_parallel(pipeline)` returns what to do before each picture."""
    image, other = draw(1, 3, 192, 64), draw(1, 3, 192, 64, seed=15)
    made = {}

    def call(pipe: Any, begin: Any, **kwargs: Any) -> torch.Tensor:
        begin()
        return pipe(**kwargs, **PIPELINE_CALL, generator=torch.Generator().manual_seed(1)).images

    xl = sdxl_pipeline()
    xl.set_progress_bar_config(disable=True)
    begin = make_parallel(xl)
    both = tiny_embeddings() | {"image": [image, other], "controlnet_conditioning_scale": [0.9, 0.5]}
    made["two nets"] = call(xl, begin, **both)
    made["part of the steps"] = call(
        xl, begin, **both, control_guidance_start=[0.0, 0.5], control_guidance_end=[0.5, 1.0]
    )
    made["guessing"] = call(xl, begin, **both, guess_mode=True)
    old = sd15_pipeline()
    old.set_progress_bar_config(disable=True)
    text = {name: value for name, value in tiny_embeddings().items() if "pooled" not in name}
    made["sd15"] = call(old, make_parallel(old), **text, image=image)
    adapted = adapter_pipeline()
    adapted.set_progress_bar_config(disable=True)
    made["adapter"] = call(adapted, make_parallel(adapted), **tiny_embeddings(), image=image)
    return made


def pipelines_on_ranks(split_batch: bool) -> dict[str, torch.Tensor]:
    """On a rank: diffusers' own pipelines with a parallel UNet and ControlNet put in."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh, parallel_controlnet

    config = DistriConfig(mode="full_sync", split_batch=split_batch)
    with open_mesh(config) as mesh:

        def make_parallel(pipe: Any) -> Any:
            pipe.unet = ParallelUNet(pipe.unet, config, mesh)
            assert pipe.config.unet == ("diffusers", "UNet2DConditionModel")
            if "controlnet" in pipe.components:
                pipe.controlnet = parallel_controlnet(pipe.controlnet, pipe.unet)
            return pipe.unet.begin

        return pictures_of(make_parallel)


@pytest.mark.parametrize(("world", "split_batch"), [(2, False), (3, False), (4, True)])
def test_pipelines_equal_plain_diffusers(world: int, split_batch: bool) -> None:
    expected = pictures_of(lambda pipe: lambda: None)
    for made in run_on_ranks(world, pipelines_on_ranks, split_batch):
        for name, latents in expected.items():
            assert relative(made[name], latents) < 5e-6, name


# --- what is refused


def refused(_: int) -> dict[str, str]:
    """On a rank: what wrong or unsupported conditions say."""
    from diffusers import ControlNetUnionModel
    from diffusers.models.attention_processor import AttnProcessor2_0, PAGIdentitySelfAttnProcessor2_0

    from distri_engine import DistriConfig, ParallelUNet, open_mesh, parallel_controlnet

    said = {}
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        steered = parallel_controlnet(net(), unet)

        def attempt(name: str, run: Any) -> None:
            unet.begin()
            try:
                run()
                said[name] = "not refused"
            except (ValueError, NotImplementedError) as error:
                said[name] = f"{type(error).__name__}: {error}"

        masks = {"cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 32, 32)]}}
        boxes = {"cross_attention_kwargs": {"gligen": {"boxes": torch.ones(1, 1, 4)}}}
        wrong = {"mid_block_additional_residual": torch.ones(2, 64, 5, 4), "down_block_additional_residuals": []}
        attempt("masks", lambda: unet(**inputs_at(0), **masks))
        attempt("gligen", lambda: unet(**inputs_at(0), **boxes))
        attempt("residual", lambda: unet(**inputs_at(0), **wrong))
        attempt("image", lambda: steered(**inputs_at(0), controlnet_cond=CONDITION[:, :, :-8]))
        with torch.device("meta"):
            union = ControlNetUnionModel(
                num_control_type=2, addition_time_embed_dim=8, block_out_channels=(32, 64, 64, 64)
            )
        attempt("union", lambda: parallel_controlnet(union, unet))
        unet.set_attn_processor(PAGIdentitySelfAttnProcessor2_0())
        attempt("pag", lambda: unet(**inputs_at(0)))
        unet.set_attn_processor(AttnProcessor2_0())
        unet.begin(DistriConfig(split_batch=True))
        four = inputs_at(0)
        four = {"sample": four["sample"].repeat(2, 1, 1, 1), "timestep": 900,
                "encoder_hidden_states": four["encoder_hidden_states"].repeat(2, 1, 1),
                "added_cond_kwargs": {k: v.repeat(2, 1) for k, v in four["added_cond_kwargs"].items()}}  # fmt: skip
        attempt("branches", lambda: (steered(**inputs_at(0), controlnet_cond=CONDITION), unet(**four)))
    return said


def test_what_has_no_form_on_patches_is_refused_by_name() -> None:
    for said in run_on_ranks(2, refused, 0):
        assert said["masks"].startswith("UnsupportedError: IP-Adapter masks (ip_adapter_masks) cannot be cut")
        assert said["gligen"].startswith("UnsupportedError: GLIGEN boxes (gligen) cannot be cut")
        assert said["residual"].startswith("ValueError: mid_block_additional_residual holds a residual of 5 x 4, which")
        assert said["image"].startswith("ValueError: the conditioning image is 128 x 216 pixels, the picture 128 x 224")
        assert said["union"].startswith("UnsupportedError: ControlNetUnionModel is not supported")
        assert "has the attention processor PAGIdentitySelfAttnProcessor2_0" in said["pag"]
        assert said["branches"].startswith("ValueError: the ControlNet halved a batch of 2 between the guidance branch")
