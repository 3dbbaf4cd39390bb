"""Metrics against the libraries that people trust: PSNR and SSIM against scikit-image, PSNR and the Fréchet distance
against torchmetrics; and what is said where weights or packages are missing.
"""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distri_engine.evaluation import perceptual
from distri_engine.evaluation.frechet import frechet_distance
from distri_engine.evaluation.likeness import psnr, ssim
from distri_engine.evaluation.metrics import fid_row, likeness_rows
from distri_engine.evaluation.perceptual import MissingError

skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


def noisy(seed: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """A smooth picture and the same with noise, [96, 120, 3], 0..255."""
    rng = np.random.default_rng(seed)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((120, 96)))
    other = np.clip(smooth + rng.normal(0, spread, smooth.shape), 0, 255).round()
    return smooth.astype(float), other


def saved(folder: Path, *pictures: np.ndarray) -> list[Path]:
    """The pictures as 0000.png and so on."""
    folder.mkdir()
    paths = [folder / f"{index:04d}.png" for index in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        Image.fromarray(picture.astype(np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("spread", [1, 10, 60])
def test_psnr_and_ssim_equal_the_library(spread: float) -> None:
    a, b = noisy(1, spread)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    assert psnr(a, b) == pytest.approx(skimage.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)
    assert ssim(a, b) == pytest.approx(skimage.structural_similarity(a, b, data_range=255, **options), abs=1e-9)


def test_equal_pictures() -> None:
    a, _ = noisy(1, 1)
    assert math.isinf(psnr(a, a))
    assert ssim(a, a) == pytest.approx(1)


def test_rows_of_pairs(tmp_path: Path) -> None:
    """Median, mean and worst of three pairs; the mean as the original computes it, with torchmetrics."""
    pairs = [noisy(seed, spread) for seed, spread in ((1, 4), (2, 40), (3, 10))]
    a, b = (saved(tmp_path / name, *(pair[side] for pair in pairs)) for side, name in enumerate("ab"))
    counted: list[None] = []
    peak, similarity, lpips = likeness_rows(a, b, download=False, done=lambda: counted.append(None))
    own = [skimage.peak_signal_noise_ratio(x, y, data_range=255) for x, y in pairs]
    assert (peak.value, peak.worst) == (pytest.approx(own[2]), pytest.approx(own[1]))
    measure = torchmetrics.image.PeakSignalNoiseRatio(data_range=(0.0, 1.0), dim=(1, 2, 3))
    stacks = [torch.from_numpy(np.stack([pair[side] for pair in pairs])).permute(0, 3, 1, 2) / 255 for side in (0, 1)]
    assert peak.mean == pytest.approx(float(measure(*stacks)), abs=1e-4)
    assert similarity.worst < similarity.value < 1
    assert (peak.unit, peak.better, similarity.better, lpips.better) == ("dB", "higher", "higher", "lower")
    assert len(counted) == 3


def test_equal_pictures_have_no_psnr_that_json_could_hold(tmp_path: Path) -> None:
    (x, y), (z, _) = noisy(1, 9), noisy(2, 9)
    a, b = saved(tmp_path / "a", x, z), saved(tmp_path / "b", y, z)
    some = likeness_rows(a, b, download=False, done=lambda: None)[0].as_json()
    assert some["missing"] == "1 of 2 pictures are equal, and their PSNR infinite"  # the median of the two is infinite
    assert some["value"] is None
    assert some["worst"] == pytest.approx(psnr(x, y))
    most = likeness_rows([*a, a[0]], [*b, b[0]], download=False, done=lambda: None)[0].as_json()
    assert most["value"] == pytest.approx(psnr(x, y))
    assert "mean" not in most
    assert (some["infinite"], most["infinite"]) == (("value", "mean"), ("mean",))
    assert most["note"] == "1 of 3 pictures are equal, and their PSNR infinite"


def test_pictures_smaller_than_a_window(tmp_path: Path) -> None:
    """Also if it is not the first pair that is."""
    shapes = ((96, 96, 3), (8, 16, 3))
    a, b = (
        saved(tmp_path / name, *(np.full(shape, value) for shape in shapes)) for name, value in (("a", 10), ("b", 20))
    )
    peak, similarity, _ = likeness_rows(a, b, download=False, done=lambda: None)
    assert peak.value == pytest.approx(20 * math.log10(25.5))
    assert similarity.missing == "its window needs 11 x 11 pixels, and the smallest of these has 8"


@pytest.mark.parametrize(("count", "features"), [(200, 16), (40, 16), (12, 16)])
def test_frechet_distance_equals_the_library(count: int, features: int) -> None:
    """Also where a covariance is singular, as of 12 pictures."""
    from torchmetrics.image.fid import _compute_fid

    generator = torch.Generator().manual_seed(count)
    mixed = torch.randn(features, features, generator=generator)
    a = torch.randn(count, features, generator=generator).double()
    b = (torch.randn(count + 5, features, generator=generator) @ mixed * 0.5 + 0.3).double()
    theirs = float(_compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()))
    assert frechet_distance(a.float(), b.float()) == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_known_gaussians() -> None:
    """Independent features: sum of (difference of means)² and (difference of deviations)²."""
    rng = np.random.default_rng(0)
    means, deviations = np.array([[0, 1, -2], [1, 1, 0]]), np.array([[1, 2, 0.5], [3, 2, 1]])
    sets = []
    for mean, deviation in zip(means, deviations, strict=True):
        features = rng.normal(size=(60, 3))
        features -= features.mean(0)
        features = features @ np.linalg.inv(np.linalg.cholesky(np.cov(features.T))).T  # exactly uncorrelated
        sets.append(torch.from_numpy(features * deviation + mean))
    known = ((means[0] - means[1]) ** 2 + (deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(*sets) == pytest.approx(known, abs=1e-6)


def test_lpips_and_fid_around_their_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the networks are given, and what is made of their answers; the networks are stand-ins."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Inception(torch.nn.Module):
        num_features = 3

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures.double().mean((2, 3))

    class Distance(FrechetInceptionDistance):
        def __init__(self, feature_extractor_weights_path: str) -> None:
            assert feature_extractor_weights_path == "weights"
            super().__init__(feature=Inception())

        def update(self, imgs: torch.Tensor, real: bool) -> None:
            batches.append((real, tuple(imgs.shape), imgs.dtype))
            super().update(imgs, real)

    class Lpips(torch.nn.Module):
        def __init__(self, net_type: str, normalize: bool) -> None:
            super().__init__()
            assert (net_type, normalize) == ("alex", True)  # pictures are in [0, 1]

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.shape == b.shape == (1, 3, 96, 120)
            return (a - b).mean()

    batches: list[tuple[bool, tuple[int, ...], torch.dtype]] = []
    weights = SimpleNamespace(AlexNet_Weights=SimpleNamespace(DEFAULT=SimpleNamespace(url="alexnet")))
    stand_in = SimpleNamespace(
        models=weights,
        LearnedPerceptualImagePatchSimilarity=Lpips,
        URL_INCEPTION_V3="inception",
        FrechetInceptionDistance=Distance,
    )
    monkeypatch.setattr(perceptual, "_package", lambda *_: stand_in)
    monkeypatch.setattr(perceptual, "_weights", lambda *_: "weights")
    pairs = [noisy(seed, 20) for seed in range(perceptual.BATCH + 2)]
    a, b = (saved(tmp_path / name, *(pair[side] for pair in pairs)) for side, name in enumerate("ab"))
    b.pop()
    row = fid_row(a, b, download=False)
    sizes = [(False, 16), (False, 2), (True, 16), (True, 1)]  # b is what is real
    assert batches == [(real, (size, 3, 299, 299), torch.uint8) for real, size in sizes]
    features = [Inception()(torch.stack([perceptual._bytes(path, 299) for path in paths])) for paths in (a, b)]
    assert row.value == pytest.approx(frechet_distance(*features), rel=1e-3)
    assert row.of == len(b)
    *_, lpips = likeness_rows(a[:3], b[:3], download=False, done=lambda: None)
    own = sorted(((x - y) / 255).mean() for x, y in pairs[:3])
    assert (lpips.value, lpips.worst) == (pytest.approx(own[1], abs=1e-6), pytest.approx(own[2], abs=1e-6))
    assert fid_row(a[:1], b, download=False).missing == "one picture has no distribution; give folders of many"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    x, y = noisy(1, 9)
    a, b = saved(tmp_path / "a", x, y), saved(tmp_path / "b", y, x)
    rows = [*likeness_rows(a, b, download=False, done=lambda: None), fid_row(a, b, download=False, instead="take tea")]
    assert [row.value is None for row in rows] == [False, False, True, True]
    assert rows[2].missing == "the package torchvision is not installed; pip install torchmetrics torchvision"
    assert rows[3].missing == (
        "the package torch-fidelity is not installed; pip install torchmetrics torch-fidelity torchvision; take tea"
    )


def test_a_package_for_another_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(perceptual.importlib, "import_module", fails)
    with pytest.raises(
        MissingError, match=r"torchvision does not work here \(operator torchvision::nms does not exist"
    ):
        perceptual.lpips_metric(256, download=False)


def test_weights_are_fetched_only_if_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up to the file in torch's cache; the networks themselves are torchvision's."""
    there = tmp_path / "there"
    there.mkdir()
    content = b"weights"
    good = there / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    good.write_bytes(content)
    (there / "bad-00000000.pth").write_bytes(content)
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCH_HOME", str(cache))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    weights = SimpleNamespace(DEFAULT=SimpleNamespace(url=good.as_uri()))
    monkeypatch.setitem(
        sys.modules, "torchvision", SimpleNamespace(models=SimpleNamespace(AlexNet_Weights=weights), __spec__=None)
    )
    with pytest.raises(MissingError) as missing:
        perceptual.lpips_metric(256, download=False)
    folder = cache / "hub" / "checkpoints"
    assert str(missing.value) == f"its weights {good.name} are not in {folder}; --download fetches them, once"
    assert not cache.exists()
    assert perceptual._weights(good.as_uri(), download=True).read_bytes() == content
    assert perceptual._weights(good.as_uri(), download=False) == folder / good.name
    with pytest.raises(MissingError, match=r"could not be fetched \(.+\); put them into .* by hand"):
        perceptual._weights((there / "gone-00000000.pth").as_uri(), download=True)
    with pytest.raises(MissingError, match=r"bad-00000000.pth are damaged; remove the file"):
        perceptual._weights((there / "bad-00000000.pth").as_uri(), download=True)
