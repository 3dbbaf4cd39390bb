"""Which model is run, and whether it can be: decided before any process is started. Loading it is the business of
the engine.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from distri_engine.config import SIZE_MULTIPLE

ASSETS = Path(__file__).resolve().parents[1] / "assets"
DEMO_MODEL = ASSETS / "demo_model"
DEMO_JUDGE = ASSETS / "demo_judge" / "judge.safetensors"  # looks at the embedded model's pictures
DEMO_SCENES = ASSETS / "demo_captions" / "scenes.json"  # what its captions mean
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")
_HUB_TIMEOUT_S = 5.0


def choose_model(model: str | None, device: str) -> str:
    """The model to load: a folder or a Hugging Face id. Raises ValueError if it cannot be opened.

    Without a wish: SDXL base on GPUs if its weights are here or can be fetched, else the embedded demo model.
    """
    if model is None:
        if device == "cuda" and not why_not_fetchable(SDXL):
            return SDXL
        return check_folder(DEMO_MODEL)
    try:
        folder = Path(model).expanduser()
        if folder.is_dir():
            return check_folder(folder)
        folder.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ValueError(f"model {model[:200]} cannot be read: {error.strerror}; choose another with --model") from None
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith((".", "/", "~")):
        raise ValueError(f"model {model} is neither a folder nor a Hugging Face id such as {SDXL}")
    if reason := why_not_fetchable(model):
        raise ValueError(f"model {model} is not a folder here, and as a Hugging Face id {reason}")
    return model


def check_folder(folder: Path) -> str:
    """The absolute path of a diffusers pipeline folder. Raises ValueError if it is none, or not in safetensors."""
    folder = folder.resolve()
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} has no model_index.json; give the folder of a diffusers SDXL pipeline") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}/model_index.json cannot be read: {error}") from None
    if not isinstance(index, dict) or "unet" not in index or "vae" not in index:
        raise ValueError(f"{folder}/model_index.json names no unet and vae; give a diffusers SDXL pipeline")
    for part, kind in index.items():
        if isinstance(kind, list) and kind[:1] not in ([], [None]):
            _check_part(folder / part)
    for part in _WEIGHTS:
        if part not in index:
            continue
        if not (folder / part / "config.json").is_file():
            raise ValueError(f"{folder}/{part} has no config.json; the pipeline folder is incomplete")
        weights = sorted((folder / part).glob("*.safetensors"))
        if not weights:
            raise ValueError(
                f"{folder}/{part} has no .safetensors weights, and other formats can run code when loaded; "
                "convert them with diffusers' save_pretrained(safe_serialization=True)"
            )
        for file in weights:
            check_weights(file)
    return str(folder)


def _check_part(folder: Path) -> None:
    """Raise ValueError if a component that the index names is absent or its settings are no JSON."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing although model_index.json names it; the pipeline folder is incomplete")
    for file in sorted(folder.glob("*config.json")):
        try:
            json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read: {error}; fetch it again") from None


def check_weights(file: Path) -> None:
    """Raise ValueError if a safetensors file is cut short or something else, judged by its header."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            header = json.loads(stream.read(length)) if length <= size else {}
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        length, end, size = 0, 0, 0
    if size != 8 + length + end:
        raise ValueError(f"{file} is damaged or incomplete; fetch it again")


def why_not_fetchable(model: str) -> str:
    """Why a Hugging Face id can be neither found in the cache nor fetched; empty if it can."""
    import huggingface_hub as hub

    if isinstance(hub.try_to_load_from_cache(model, "unet/diffusion_pytorch_model.safetensors"), str):
        return ""
    if isinstance(hub.try_to_load_from_cache(model, "unet/diffusion_pytorch_model.fp16.safetensors"), str):
        return ""
    try:
        files = [file.rfilename for file in hub.HfApi().model_info(model, timeout=_HUB_TIMEOUT_S).siblings or []]
    except Exception as error:  # the client raises its own, requests' and httpx's errors
        return f"it cannot be fetched ({type(error).__name__}); check the spelling and the network"
    if "model_index.json" not in files:
        return "it is no diffusers pipeline: it has no model_index.json"
    if not any(file.startswith("unet/") and file.endswith(".safetensors") for file in files):
        return "it has no .safetensors weights"
    return ""


def sizes(model: str) -> tuple[int | None, int]:
    """Default side and size multiple in pixels of a pipeline folder, without loading it; (None, 32) for an id."""
    try:
        unet, vae = (json.loads((Path(model) / part / "config.json").read_text()) for part in ("unet", "vae"))
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        return unet["sample_size"] * scale, scale * 2 ** (len(unet["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return None, SIZE_MULTIPLE
