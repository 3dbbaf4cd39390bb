"""The plan on the published architectures, on the meta device: a renamed layer fails here in seconds."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from distri_engine.errors import ModelError
from distri_engine.evaluation.models import CONFIGS
from distri_engine.exchange import Exchange
from distri_engine.mesh import Mesh
from distri_engine.plan import DISPLACED_RULES, apply_plan, share, structure
from distri_engine.step import StepClock
from tests.support.models import tiny_sdxl_unet


def on_meta(name: str) -> nn.Module:
    """A published model without its weights."""
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    with torch.device("meta"):
        return {"UNet2DConditionModel": UNet2DConditionModel, "AutoencoderKL": AutoencoderKL}[
            config["_class_name"]
        ].from_config(config)


def exchange() -> Exchange:
    return Exchange(Mesh(0, 1, torch.device("cpu")), StepClock())


MILLIONS = {"sdxl_base_unet": 2567, "sd15_unet": 860, "sd21_unet": 866, "sdxl_refiner_unet": 2260}  # parameters


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        # SDXL: 17 ResNet blocks (2 convolutions, 2 norms each), 2 + 2 samplers, conv_in, conv_out, conv_norm_out;
        # 70 transformer layers in 11 transformers with a norm each.
        ("sdxl_base_unet", (1, 39, 46, 140, 140)),
        # SD 1.5: 22 ResNet blocks, 3 + 3 samplers, 16 transformers of one layer.
        ("sd15_unet", (1, 51, 61, 32, 32)),
        ("sd21_unet", (1, 51, 61, 32, 32)),
        # The SDXL refiner: as many ResNet blocks and samplers, 44 transformer layers in 11 transformers.
        ("sdxl_refiner_unet", (1, 51, 56, 88, 88)),
    ],
)
def test_published_unets(name: str, counts: tuple[int, ...]) -> None:
    unet = on_meta(name)
    assert round(unet.num_parameters() / 1e6) == MILLIONS[name]
    report = apply_plan(share(unet), DISPLACED_RULES, exchange())
    assert tuple(report.counts.values()) == counts
    assert list(report.counts) == [
        "sliced convolution",
        "convolution",
        "group norm",
        "self-attention projection",
        "text projection",
    ]
    taken = {path for paths in report.paths.values() for path in paths}
    for path, module in unet.named_modules():
        spatial = isinstance(module, nn.GroupNorm) or (isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1))
        attention = path.endswith((".attn1.to_k", ".attn1.to_v", ".attn2.to_k", ".attn2.to_v"))
        assert (path in taken) == (spatial or attention), path


def test_sharing_copies_no_weight_and_leaves_the_model_alone() -> None:
    unet = tiny_sdxl_unet()
    names, before = list(unet.state_dict()), structure(unet)
    tree = share(unet)
    apply_plan(tree, DISPLACED_RULES, exchange())
    assert list(unet.state_dict()) == names == list(tree.state_dict())
    assert all(a is b for a, b in zip(unet.parameters(), tree.parameters(), strict=True))
    assert not any("forward" in module.__dict__ for module in unet.modules())
    assert structure(unet) == before
    unet.conv_in.weight = nn.Parameter(torch.zeros_like(unet.conv_in.weight))
    assert tree.conv_in.weight is unet.conv_in.weight  # also when a parameter is replaced
    unet.conv_out = nn.Identity()
    assert structure(unet) != before


def test_layers_without_a_form_on_bands_are_named() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(4, 4, 3, stride=2, padding=0)

    with pytest.raises(ModelError, match="down cannot run on a band of rows"):
        apply_plan(Model(), DISPLACED_RULES, exchange())
