"""LPIPS and FID by torchmetrics, where the packages and weights that it needs are on this machine; nothing is fetched
unless that is asked for. Metrics that need no foreign weights are likeness.py's and frechet.py's.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from PIL import Image

from distri_engine.evaluation.likeness import opened

INCEPTION_SIDE = 299
LEAST_SIDE = 64  # AlexNet's layers leave nothing of smaller pictures
BATCH = 16


class MissingError(Exception):
    """A metric cannot be computed here; the message says why and what to do about it."""


def lpips_metric(side: int, *, download: bool, device: str | None = None) -> Callable[[Path, Path], float]:
    """LPIPS of two pictures of one size, with AlexNet as in the published figures (Zhang et al., 2018), on `device`, by
    default on a GPU if there is one.

    Raises MissingError, also for pictures whose shorter `side` is too short.
    """
    if side < LEAST_SIDE:
        raise MissingError(f"its network needs pictures of {LEAST_SIDE} x {LEAST_SIDE} pixels, and these have {side}")
    torchvision = _package("torchvision", "torchmetrics torchvision")
    lpips = _package("torchmetrics.image.lpip", "torchmetrics torchvision")
    _weights(torchvision.models.AlexNet_Weights.DEFAULT.url, download)
    place = torch.device(device) if device else _device()
    metric = lpips.LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(place)

    def measure(a: Path, b: Path) -> float:
        with torch.no_grad():
            return float(metric(*(_bytes(path)[None].to(place).float() / 255 for path in (a, b))))

    return measure


def fid(a: Sequence[Path], b: Sequence[Path], *, download: bool) -> float:
    """Fréchet Inception Distance of two sets of pictures of any sizes.

    Pictures are shrunk with Pillow's bicubic filter, which averages, as in Parmar et al., "On aliased resizing and
    surprising subtleties in GAN evaluation" (2022), but to whole numbers, which is what torchmetrics takes. Raises
    MissingError, also for a set of one picture.
    """
    if min(len(a), len(b)) < 2:
        raise MissingError("one picture has no distribution; give folders of many")
    inception = _package("torch_fidelity.feature_extractor_inceptionv3", "torchmetrics torch-fidelity torchvision")
    frechet = _package("torchmetrics.image.fid", "torchmetrics torch-fidelity torchvision")
    file = _weights(inception.URL_INCEPTION_V3, download)
    device = _device()
    metric = frechet.FrechetInceptionDistance(feature_extractor_weights_path=str(file)).to(device)
    with torch.no_grad():
        for pictures, real in ((a, False), (b, True)):
            for first in range(0, len(pictures), BATCH):
                batch = [_bytes(path, INCEPTION_SIDE) for path in pictures[first : first + BATCH]]
                metric.update(torch.stack(batch).to(device), real=real)
        return max(0.0, float(metric.compute()))


def _bytes(path: Path, side: int | None = None) -> torch.Tensor:
    """The picture at `path`, [3, H, W], uint8, or [3, side, side]."""
    colours = opened(path)
    if side is not None:
        colours = colours.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(colours)).permute(2, 0, 1)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _package(module: str, packages: str) -> Any:
    """Import `module`. Raises MissingError with what to install."""
    name = module.split(".")[0].replace("_", "-")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = (error.name or name).split(".")[0].replace("_", "-")
        raise MissingError(f"the package {name} is not installed; pip install {packages}") from None
    except (
        Exception
    ) as error:  # torchvision made for another torch fails with RuntimeError, a lost library with OSError
        reason = str(error).splitlines()[0]
        raise MissingError(
            f"the package {name} does not work here ({reason}); install the one made for torch {torch.__version__}"
        ) from None


def _weights(url: str, download: bool) -> Path:
    """Where the weights of `url` are, in torch's cache. Raises MissingError if they are not there, or not they.

    Both libraries unpickle these files, so they get none without the digest that its name promises.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not file.is_file():
        if not download:
            raise MissingError(f"its weights {file.name} are not in {file.parent}; --download fetches them, once")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), progress=False)
        except OSError as error:
            raise MissingError(
                f"its weights {file.name} could not be fetched ({error}); put them into {file.parent} by hand"
            ) from None
    promised = re.search(r"-([0-9a-f]{8,})\.", file.name)
    with file.open("rb") as content:
        if promised is None or not hashlib.file_digest(content, "sha256").hexdigest().startswith(promised[1]):
            raise MissingError(f"its weights {file} are damaged; remove the file and fetch it with --download")
    return file
