"""How a training begins: with the weights and tokenizers of another pipeline, and with the arithmetic that the machine
is quick at.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from assets.demo_training.text import PADS

stopping = threading.Event()
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # others: model


def copy_weights(pipeline: Path, modules: Mapping[str, torch.nn.Module]) -> None:
    """Load each module from the part of `pipeline` that has its name.

    Raises ValueError if a part has other shapes than ours.
    """
    for name, module in modules.items():
        weights = load_file(pipeline / name / f"{WEIGHTS.get(name, 'model')}.safetensors")
        try:
            module.load_state_dict({key: value.float() for key, value in weights.items()})
        except RuntimeError as error:
            raise ValueError(f"{pipeline}/{name} has other weights than the one to train; choose its preset") from error


def copy_tokenizers(pipeline: Path, folder: Path) -> None:
    """Both tokenizers of `pipeline`, whose embeddings belong to its encoders; unknown words fall to pieces in them."""
    for name in PADS:
        if not (folder / name).exists():
            shutil.copytree(pipeline / name, folder / name)


def listen() -> None:
    """From now on SIGTERM and Ctrl+C set `stopping`, so that a training saves before it ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())


def has_fast_bfloat16(device: str) -> bool:
    """GPUs, and CPUs that multiply bfloat16 in hardware: elsewhere it is emulated, and slower than float32."""
    return device != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
