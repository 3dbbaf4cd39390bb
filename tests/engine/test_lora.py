"""LoRA: every kind of layer exact on bands, and every call of diffusers' interface with the effect it has there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.gang import run_on_ranks
from tests.support.models import (
    DEMO_MODEL,
    demo_pipeline,
    relative,
    sdxl_inputs,
    tiny_embeddings,
    tiny_sdxl_pipeline,
    tiny_sdxl_unet,
)

# What each adapter is wrapped around, and further options of its config.
KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "keys": (["to_k"], {}),
    "values": (["to_v"], {}),
    "queries": (["to_q"], {}),
    "outputs": (["to_out.0"], {}),
    "feed-forward": (["ff.net.0.proj", "ff.net.2"], {}),
    "transformer projections": (["proj_in", "proj_out"], {}),
    "resnet convolutions": (["conv1", "conv2", "conv_shortcut", "time_emb_proj"], {}),
    "sampling convolutions": (["downsamplers.0.conv", "upsamplers.0.conv"], {}),
    "first and last convolution": (["conv_in", "conv_out"], {}),
    "DoRA keys": (["to_k", "to_v"], {"use_dora": True}),
}


def add_adapter(unet: Any, name: str, targets: list[str], **options: Any) -> None:
    """Wrap a LoRA with weights from a fixed seed around the layers of `unet` whose names end in `targets`."""
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=targets, **options), name)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    with torch.no_grad():
        for path, parameter in sorted(unet.named_parameters()):
            if f".{name}." in path and "magnitude" not in path:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def inputs_at(step: int) -> dict[str, Any]:
    first = sdxl_inputs(2, 28, 8)
    return first | {"sample": first["sample"] * (1 - 0.1 * step), "timestep": 900 - 100 * step}  # type: ignore[operator]


@torch.no_grad()
def kinds_in_turn(unet: Any, begin: Any) -> dict[str, torch.Tensor]:
    """The UNet's output with each kind of adapter alone, then with two that are switched within a picture."""
    made = {}
    for kind, (targets, options) in KINDS.items():
        add_adapter(unet, "one", targets, **options)
        begin()
        made[kind] = unet(**inputs_at(0)).sample
        unet.unload_lora()
    begin()
    made["none"] = unet(**inputs_at(0)).sample
    add_adapter(unet, "one", ["to_k", "to_v"])
    add_adapter(unet, "two", ["to_k", "conv1"])
    begin()
    unet.set_adapters("one")
    unet(**inputs_at(0))
    unet.set_adapters(["one", "two"], [0.5, -0.7])
    made["switched"] = unet(**inputs_at(1)).sample
    made["scaled"] = unet(**inputs_at(2), cross_attention_kwargs={"scale": 0.4}).sample
    return made


def kinds_on_ranks(split_batch: bool) -> dict[str, torch.Tensor]:
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    config = DistriConfig(mode="full_sync", split_batch=split_batch)
    with open_mesh(config) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), config, mesh)
        return kinds_in_turn(unet, unet.begin)


def test_every_kind_of_layer_equals_one_device() -> None:
    expected = kinds_in_turn(tiny_sdxl_unet(), lambda: None)
    for made in run_on_ranks(3, kinds_on_ranks, False):
        for kind, output in expected.items():
            assert relative(made[kind], output) < 5e-6, kind
            assert (relative(output, expected["none"]) > 1e-3) == (kind != "none"), kind


# --- diffusers' interface, call by call


def save_adapters(folder: Path) -> None:
    """Two LoRA files by diffusers' own writer."""
    from diffusers import StableDiffusionXLPipeline
    from peft.utils import get_peft_model_state_dict

    for name, targets in (("a", ["to_q", "to_k", "to_v", "to_out.0"]), ("b", ["to_v", "ff.net.2", "conv1"])):
        unet = tiny_sdxl_unet()
        add_adapter(unet, name, targets)
        StableDiffusionXLPipeline.save_lora_weights(
            folder / name, unet_lora_layers=get_peft_model_state_dict(unet, adapter_name=name)
        )


def story(pipe: Any, folder: Path, begin: Any) -> dict[str, torch.Tensor]:
    """Final latents after each call of the LoRA interface, in an order that people use."""
    pipe.set_progress_bar_config(disable=True)
    made: dict[str, torch.Tensor] = {}

    def picture(name: str, **kwargs: Any) -> None:
        begin()
        made[name] = pipe(
            **tiny_embeddings(), num_inference_steps=2, height=96, width=64, output_type="latent",
            generator=torch.Generator().manual_seed(1), **kwargs,
        ).images  # fmt: skip

    picture("none")
    pipe.load_lora_weights(folder / "a", adapter_name="a")
    picture("load")
    picture("scale of one call", cross_attention_kwargs={"scale": 0.3})
    pipe.set_adapters("a", 0.5)
    picture("weight")
    pipe.load_lora_weights(folder / "b", adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.7, -0.4])
    picture("both")
    pipe.fuse_lora(lora_scale=0.8)
    assert pipe.num_fused_loras == 2
    picture("fuse")
    pipe.unfuse_lora()
    picture("unfuse")
    pipe.set_adapters("b")
    pipe.disable_lora()
    picture("disable")
    pipe.enable_lora()
    picture("enable")
    pipe.set_adapters(["a", "b"])
    pipe.delete_adapters("b")
    assert pipe.get_list_adapters() == {"unet": ["a"]}
    picture("delete")
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    picture("unload")
    pipe.load_lora_weights(folder / "b")
    picture("load again")
    return made


CHANGES = ("load", "scale of one call", "weight", "both", "fuse", "enable", "delete", "load again")


def story_on_ranks(folder: str) -> dict[str, torch.Tensor]:
    """On a rank: diffusers' own pipeline with a parallel UNet put in."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    config = DistriConfig(mode="full_sync", split_batch=False)
    with open_mesh(config) as mesh:
        pipe = tiny_sdxl_pipeline()
        pipe.unet = ParallelUNet(pipe.unet, config, mesh)
        made = story(pipe, Path(folder), pipe.unet.begin)
        pipe.fuse_lora()  # and a fused model is saved as what it is
        pipe.unload_lora_weights()
        place = Path(folder, f"fused-{mesh.rank}")
        pipe.save_pretrained(place)
        made["saved"] = type(pipe).from_pretrained(place).unet.up_blocks[0].resnets[0].conv1.weight.detach()
        return made


def test_every_call_does_what_it_does_in_diffusers(tmp_path: Path) -> None:
    save_adapters(tmp_path)
    plain = tiny_sdxl_pipeline()
    expected = story(plain, tmp_path, lambda: None)
    plain.fuse_lora()
    for name in CHANGES:
        for other in ("none", *CHANGES[: CHANGES.index(name)]):
            if {name, other} != {"load", "delete"} and {name, other} != {"enable", "load again"}:
                assert relative(expected[name], expected[other]) > 1e-4, (name, other)
    for made in run_on_ranks(2, story_on_ranks, str(tmp_path)):
        saved = made.pop("saved")
        assert torch.equal(saved, plain.unet.up_blocks[0].resnets[0].conv1.base_layer.weight)
        for name, latents in expected.items():
            assert relative(made[name], latents) < 5e-6, name


# --- text encoders, which only rank 0 has


def save_text_adapters(folder: Path) -> None:
    """Two LoRA files for the embedded model: one of all its parts, one of the text encoder alone."""
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = demo_pipeline()
    add_adapter(pipe.unet, "all", ["to_k", "to_v"])
    layers = {"unet_lora_layers": get_peft_model_state_dict(pipe.unet, adapter_name="all")}
    for part in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipe, part)
        encoder.add_adapter(LoraConfig(r=3, target_modules=["q_proj", "v_proj", "fc1"]), "all")
        with torch.no_grad():
            for path, parameter in encoder.named_parameters():
                if "lora_B" in path:
                    parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(len(path)))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(encoder, adapter_name="all")
    StableDiffusionXLPipeline.save_lora_weights(folder / "all", **layers)
    del layers["unet_lora_layers"], layers["text_encoder_2_lora_layers"]
    StableDiffusionXLPipeline.save_lora_weights(folder / "text", **layers)


def text_story(pipe: Any, folder: Path) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}

    def picture(name: str, **kwargs: Any) -> None:
        made[name] = pipe(
            "a red house", num_inference_steps=2, height=64, width=64, output_type="latent", guidance_scale=3.0,
            generator=torch.Generator().manual_seed(1), **kwargs,
        ).images  # fmt: skip

    picture("none")
    pipe.load_lora_weights(folder / "all", adapter_name="all")
    picture("all")
    picture("scaled", cross_attention_kwargs={"scale": 0.5})
    pipe.load_lora_weights(folder / "text", adapter_name="text")
    pipe.set_adapters(["all", "text"], [0.5, 0.9])
    picture("both")
    pipe.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    picture("fused")
    pipe.unfuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    pipe.delete_adapters("all")
    pipe.set_adapters("text")
    picture("text")
    pipe.unload_lora_weights()
    picture("unloaded")
    return made


def text_story_on_ranks(folder: str) -> dict[str, torch.Tensor]:
    from diffusers import DDIMScheduler

    from distri_engine import DistriConfig, DistriSDXLPipeline

    config = DistriConfig(mode="full_sync", split_batch=False)
    pipeline = DistriSDXLPipeline.from_pretrained(str(DEMO_MODEL), distri_config=config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    made = text_story(pipeline, Path(folder))
    pipeline.close()
    return made


def test_text_encoder_layers_are_for_rank_0(tmp_path: Path) -> None:
    save_text_adapters(tmp_path)
    expected = text_story(demo_pipeline(), tmp_path)
    for name in ("all", "scaled", "both", "text"):
        assert relative(expected[name], expected["none"]) > 1e-3, name
    for made in run_on_ranks(2, text_story_on_ranks, str(tmp_path)):
        for name, latents in expected.items():
            assert relative(made[name], latents) < 5e-6, name


# --- what is refused


def test_adapters_without_a_form_on_bands_are_refused_until_fused() -> None:
    from peft import LoKrConfig

    from distri_engine.errors import UnsupportedError
    from distri_engine.plan import check_supported

    unet = tiny_sdxl_unet()
    unet.add_adapter(LoKrConfig(r=4, target_modules=["to_k"]), "linear")
    check_supported(unet)
    unet.add_adapter(LoKrConfig(r=4, target_modules=["conv1"]), "convolution")
    with pytest.raises(UnsupportedError, match="conv1 has an adapter of a kind"):
        check_supported(unet)
    check_supported(unet, whole=True)
    unet.fuse_lora()
    check_supported(unet)
    dora = tiny_sdxl_unet()
    add_adapter(dora, "dora", ["conv1"], use_dora=True)
    with pytest.raises(UnsupportedError, match="conv1 has an adapter of a kind"):
        check_supported(dora)
