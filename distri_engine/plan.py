"""Which module becomes which patched layer: rules as data, applied once to a tree of modules that shares every weight
with the model it was made from. How a patched layer computes stands in layers/.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0
from torch import nn

from distri_engine.errors import ModelError, UnsupportedError
from distri_engine.exchange import Exchange
from distri_engine.layers.once import ConditionEmbedding, Once
from distri_engine.layers.patch_attention import GatheredProjection
from distri_engine.layers.patch_conv import PatchConv2d, SlicedConv2d, halo_rows
from distri_engine.layers.patch_norm import PatchGroupNorm

Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Site:
    """A module where it stands."""

    path: str
    name: str  # last part of the path
    module: nn.Module
    parent: nn.Module


@dataclass(frozen=True)
class Rule:
    """A kind of layer: where it applies, and what its forward becomes."""

    name: str
    matches: Callable[[Site], bool]
    patch: Callable[[Site, Exchange], Forward]


@dataclass
class PlanReport:
    """What `apply_plan` did: the paths that each rule took, in the model's order."""

    paths: dict[str, list[str]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many modules each rule took."""
        return {name: len(paths) for name, paths in self.paths.items()}

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items())


def _is_spatial_conv(site: Site) -> bool:
    return isinstance(site.module, nn.Conv2d) and max(site.module.kernel_size) > 1


def _is_projection(site: Site, *, of_text: bool) -> bool:
    if site.name not in ("to_k", "to_v") or not isinstance(site.parent, Attention):
        return False
    return bool(site.parent.is_cross_attention) == of_text


def _patch_conv(site: Site, exchange: Exchange) -> Forward:
    assert isinstance(site.module, nn.Conv2d)
    _check_conv(site.path, site.module)
    return PatchConv2d(site.module, exchange.halo(*halo_rows(site.module)))


def _check_conv(path: str, conv: nn.Conv2d) -> None:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or (conv.stride[0] > 1 and not conv.padding[0]):
        raise ModelError(
            f"{path} cannot run on a band of rows: it pads outside the convolution (padding {conv.padding}, "
            f"mode {conv.padding_mode}, stride {conv.stride}); use parallelism single or naive_patch for this model"
        )


def _patch_norm(site: Site, exchange: Exchange) -> Forward:
    assert isinstance(site.module, nn.GroupNorm)
    return PatchGroupNorm(site.module, exchange.stats())


def _slice_conv(site: Site, exchange: Exchange) -> Forward:
    assert isinstance(site.module, nn.Conv2d)
    _check_conv(site.path, site.module)
    return SlicedConv2d(site.module, exchange)


# The first rule that matches takes the module.
DISPLACED_RULES: tuple[Rule, ...] = (
    # Whatever stands at conv_in, an adapter's convolutions too, sees the whole latents.
    Rule(
        "sliced convolution", lambda site: site.path.split(".")[0] == "conv_in" and _is_spatial_conv(site), _slice_conv
    ),
    Rule("convolution", _is_spatial_conv, _patch_conv),
    Rule("group norm", lambda site: isinstance(site.module, nn.GroupNorm), _patch_norm),
    Rule(
        "self-attention projection",
        lambda site: _is_projection(site, of_text=False),
        lambda site, exchange: GatheredProjection(site.module.forward, exchange.gather()),
    ),
    # Not one that an adapter is wrapped around: its scale may change from step to step.
    Rule(
        "text projection",
        lambda site: _is_projection(site, of_text=True) and not any(site.module.children()),
        lambda site, exchange: Once(site.module.forward, exchange.clock),
    ),
)

CONTROLNET_RULES: tuple[Rule, ...] = (
    Rule(
        "conditioning image",
        lambda site: site.path == "controlnet_cond_embedding",
        lambda site, exchange: ConditionEmbedding(site.module.forward, exchange),
    ),
    *DISPLACED_RULES,
)


def apply_plan(tree: nn.Module, rules: Sequence[Rule], exchange: Exchange) -> PlanReport:
    """Patch every module of `tree` that a rule matches, in place; make `tree` with `share` first. A patched module
    answers for everything inside it, to which no rule is applied any more.

    Raises ModelError for a layer that has no form on a band of rows.
    """
    report = PlanReport({rule.name: [] for rule in rules})
    parents = {"": tree}
    taken = "no module yet"  # the last patched one; what is inside it follows at once
    for path, module in tree.named_modules():
        parents[path] = module
        if path.startswith(f"{taken}."):
            continue
        head, _, name = path.rpartition(".")
        site = Site(path=path, name=name, module=module, parent=parents[head])
        for rule in rules:
            if rule.matches(site):
                # On the instance, so that names, weights and whatever wraps the module stay as they are.
                module.forward = rule.patch(site, exchange)
                report.paths[rule.name].append(path)
                taken = path
                break
    return report


_OWN = ("_modules", "forward", "_compiled_call_impl")  # what a twin does not take over from its original


def share(module: nn.Module) -> nn.Module:
    """A second tree of modules over the same weights: module objects are new, everything they hold is the same object.

    `follow` brings it up to date with switches that were set on the original since.
    """
    return _share(module, {})


def _share(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    if id(module) in made:
        return made[id(module)]
    twin = copy.copy(module)
    made[id(module)] = twin
    twin.__dict__["_modules"] = {
        name: None if child is None else _share(child, made) for name, child in module._modules.items()
    }
    return twin


def follow(tree: nn.Module, original: nn.Module) -> None:
    """Take over every attribute that was set on a module of `original` since `share`: processors, adapter switches.

    Raises ModelError if a patched convolution has no form on a band of rows any more.
    """
    for module, (path, twin) in zip(original.modules(), tree.named_modules(), strict=True):
        twin.__dict__.update({name: value for name, value in module.__dict__.items() if name not in _OWN})
        if isinstance(twin.__dict__.get("forward"), PatchConv2d | SlicedConv2d):
            assert isinstance(twin, nn.Conv2d)
            _check_conv(path, twin)


# diffusers' processors that ask the attention module for keys and values once, and treat every query alike.
_SAFE_PROCESSORS = frozenset(
    {
        "AttnProcessor",
        "AttnProcessor2_0",
        "AttnProcessorNPU",
        "SlicedAttnProcessor",
        "XFormersAttnProcessor",
        "XLAFlashAttnProcessor2_0",
        "IPAdapterAttnProcessor",
        "IPAdapterAttnProcessor2_0",
        "IPAdapterXFormersAttnProcessor",
    }
)


def check_supported(model: nn.Module, *, whole: bool = False) -> None:
    """Raise UnsupportedError for features of `model` that would silently give a wrong picture on bands of rows, or with
    patched modules at all. `whole`: every rank sees the whole picture.
    """
    for path, module in model.named_modules():
        where = path or "the model"
        if "forward" in module.__dict__:
            raise UnsupportedError(
                f"{where} has a hook around its forward (CPU offload?), which has no parallel form; "
                "remove it, or use parallelism single"
            )
        if module._compiled_call_impl is not None:
            raise UnsupportedError(
                f"{where} is compiled, and what is compiled cannot be patched; load the model anew without compile(), "
                "or use parallelism single"
            )
        if isinstance(getattr(module, "processor", None), FusedAttnProcessor2_0):
            raise UnsupportedError(
                f"{where} has fused projections, which are not patched; call unfuse_qkv_projections() first"
            )
        if whole:
            continue
        if any(getattr(module, name, None) is not None for name in ("s1", "s2", "b1", "b2")):
            raise UnsupportedError(f"{where} uses FreeU, which has no form on bands; call disable_freeu() first")
        if isinstance(module, Attention):
            _check_processor(where, module.processor)
        if hasattr(module, "base_layer"):
            _check_adapter(where, module)


def _check_processor(where: str, processor: object) -> None:
    """Of processors that somebody else wrote, nothing is known: they run."""
    kind = type(processor)
    if kind.__module__.startswith("diffusers.") and kind.__name__ not in _SAFE_PROCESSORS:
        raise UnsupportedError(
            f"{where} has the attention processor {kind.__name__}, which has no form on bands; "
            "call set_default_attn_processor(), or use parallelism single"
        )


def _check_adapter(where: str, layer: Any) -> None:
    """layer: one of peft's. LoRA's own convolutions are modules, which are patched; other kinds call F.conv2d."""
    base = layer.get_base_layer()
    if not isinstance(base, nn.Conv2d) or max(base.kernel_size) == 1 or layer.merged or layer.disable_adapters:
        return
    is_lora = type(layer).__module__.startswith("peft.tuners.lora")
    if not is_lora or set(layer.active_adapters) & set(layer.lora_variant):
        raise UnsupportedError(
            f"{where} has an adapter of a kind (DoRA, LoKr, ...) that has no form on bands around a convolution; "
            "call fuse_lora() first, or use parallelism single"
        )


def structure(module: nn.Module) -> tuple[nn.Module, ...]:
    """Changes when modules are added or replaced, as adapters do; then trees made of `module` are out of date."""
    return tuple(module.modules())  # themselves: the id of one that is gone may come back as another's
