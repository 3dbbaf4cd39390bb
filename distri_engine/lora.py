"""LoRA on ranks without text encoders: diffusers' loaders work on every rank, and keep the same list of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def skip_absent_text_encoders(pipeline: Any) -> None:
    """Let the LoRA methods of a diffusers `pipeline` pass over text encoders that it has not got.

    Text is encoded on rank 0 alone, so an adapter's text layers are needed there only; but every rank must agree on
    which adapters there are, or `set_adapters` would refuse on some what it does on others.
    """
    load, listed = pipeline.load_lora_into_text_encoder, pipeline.get_list_adapters
    delete, unload = pipeline.delete_adapters, pipeline.unload_lora_weights
    absent: dict[str, list[str]] = {}  # text encoder that is not here -> adapters that have layers for it

    def load_if_here(
        state_dict: Mapping[str, torch.Tensor], network_alphas: Any, text_encoder: Any, prefix: Any = None, **rest: Any
    ) -> None:
        if text_encoder is not None:
            load(state_dict, network_alphas, text_encoder, prefix=prefix, **rest)
        elif any(key.startswith(f"{prefix}.") for key in state_dict):
            names = absent.setdefault(prefix, [])
            names.append(rest.get("adapter_name") or f"default_{len(names)}")  # as diffusers would name it

    def list_everywhere() -> dict[str, list[str]]:
        return listed() | {part: list(names) for part, names in absent.items() if names}

    def delete_everywhere(adapter_names: list[str] | str) -> None:
        delete(adapter_names)
        gone = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for names in absent.values():
            names[:] = [name for name in names if name not in gone]

    def unload_everywhere(*args: Any, **kwargs: Any) -> None:
        unload(*args, **kwargs)
        absent.clear()

    pipeline.load_lora_into_text_encoder = load_if_here
    pipeline.get_list_adapters = list_everywhere
    pipeline.delete_adapters = delete_everywhere
    pipeline.unload_lora_weights = unload_everywhere
