"""Diffusers pipelines from where they lie: a model folder or id, or another pipeline's components. How a pipeline is
run is pipelines.py's business.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import StableDiffusionXLPipeline

from distri_engine.errors import ModelError, UnsupportedError

# What only rank 0 needs: text encoders, and the safety checker with what prepares pictures for it.
_RANK_0_PARTS = (
    *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    *("safety_checker", "feature_extractor", "image_encoder"),
)


def load_pipeline(
    model: str,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    text: bool = True,
    kind: Any = StableDiffusionXLPipeline,
    **kwargs: Any,
) -> Any:
    """Open a model folder or id as the diffusers pipeline `kind` on `device`; without `text` the text encoders and the
    safety checker stay on disk.

    dtype defaults to float16 on CUDA and float32 elsewhere. Raises ModelError if it cannot be opened, and
    UnsupportedError for arguments that would place the weights otherwise.
    """
    for name in ("device_map", "custom_pipeline", "enable_pag"):
        if kwargs.get(name):
            raise UnsupportedError(f"{name} is not supported under patch parallelism; every rank holds the whole model")
    family = "SDXL" if "text_encoder_2" in inspect.signature(kind.__init__).parameters else "Stable Diffusion"
    folder = Path(model)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ModelError(
            f"{model} is not a model folder: it has no model_index.json; give a diffusers {family} folder or a model id"
        )
    if not text:
        accepted = inspect.signature(kind.__init__).parameters
        kwargs |= {name: None for name in _RANK_0_PARTS if name in accepted}
        kwargs |= {"requires_safety_checker": False} if "requires_safety_checker" in accepted else {}
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    try:
        if text and not kwargs.get("quantization_config"):
            kwargs |= _text_encoders(model, kind, dtype, kwargs)
        pipe = kind.from_pretrained(model, dtype=dtype, **kwargs)
        _check_whole(model, pipe)
    except ModelError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the model {model} cannot be opened as an {family} pipeline: {reason}") from error
    return pipe.to(device)


_FETCHING = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


def _text_encoders(model: str, kind: Any, dtype: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The text encoders of `model` that are not `given`. transformers would fill weights that a file lacks with random
    numbers, and another picture came of each start; here that is a ModelError.
    """
    where = {name: given[name] for name in _FETCHING if name in given}
    files = {name: given[name] for name in ("use_safetensors", "variant") if name in given}
    index = kind.load_config(model, **where)
    encoders = {}
    for part in ("text_encoder", "text_encoder_2"):
        library, name = index.get(part) or ("", "")
        if library != "transformers" or part in given or not isinstance(dtype, torch.dtype):
            continue
        load = partial(getattr(transformers, str(name)).from_pretrained, model, subfolder=part, dtype=dtype, **where)
        try:
            encoders[part], told = load(output_loading_info=True, **files)
        except OSError:
            if not files.get("variant"):
                raise
            # As in diffusers: a part without files of the variant has plain ones.
            encoders[part], told = load(output_loading_info=True, **files | {"variant": None})
        _refuse_missing(model, part, list(told["missing_keys"]))
    return encoders


def _check_whole(model: str, pipe: Any) -> None:
    """Raise ModelError for weights that diffusers did not find, and left without content."""
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            _refuse_missing(model, part, [name for name, weight in module.named_parameters() if weight.is_meta])


def _refuse_missing(model: str, part: str, missing: list[str]) -> None:
    if missing:
        raise ModelError(
            f"the weights of {model}/{part} lack {min(missing)}"
            + (f" and {len(missing) - 1} others" if missing[1:] else "")
            + "; the file is incomplete, or of another model: fetch it again"
        )


def check_family(pipe: Any) -> None:
    """Raise ValueError if the UNet of an SDXL pipeline is not SDXL's, or the other way round: diffusers loads both."""
    sdxl_pipeline = "text_encoder_2" in pipe.components
    sdxl_unet = pipe.unet.config.addition_embed_type == "text_time"
    if sdxl_pipeline != sdxl_unet:
        families = ("Stable Diffusion 1 or 2", "SDXL")
        raise ValueError(
            f"a {type(pipe).__name__} cannot run the UNet of {families[sdxl_unet]}; "
            f"use the class of the same name for {families[sdxl_unet]}"
        )


def share_components(kind: Any, pipe: Any, given: dict[str, Any]) -> Any:
    """A diffusers pipeline `kind` over the components and options of `pipe`, and what is `given` besides.

    Unlike diffusers' `from_pipe` it casts no weights. Raises ValueError if components are missing.
    """
    parts, options = kind._get_signature_keys(kind)
    known = {name.removeprefix("_"): value for name, value in pipe.config.items()} | pipe.components
    shared = {name: known[name] for name in (*parts, *options) if name in known} | given
    parameters = inspect.signature(kind.__init__).parameters
    missing = [name for name in parts if name not in shared and parameters[name].default is inspect.Parameter.empty]
    if missing:
        raise ValueError(f"a {type(pipe).__name__} has no {missing[0]} for a {kind.__name__}; pass {missing[0]}=...")
    made = kind(**shared)
    if hasattr(pipe, "watermark") and "add_watermarker" not in given:
        made.watermark = pipe.watermark
    return made
