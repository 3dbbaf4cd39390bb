"""The UNet on N ranks: exact where it must be, and the paper's arithmetic in every mode, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distri_engine.bands import split_units
from tests.support.gang import run_on_ranks, side_by_side
from tests.support.models import relative, sdxl_inputs, tiny_sd15_unet, tiny_sdxl_unet
from tests.support.reference import reference_steps

MODES = ("full_sync", "sync_gn", "stale_gn", "corrected_async_gn", "separate_gn", "no_sync", "extrapolated")
WARMUP, STEPS = 1, 5


def steps_of(height: int, width: int) -> list[dict[str, Any]]:
    """Inputs of a short picture: the latents move a little at every step."""
    first = sdxl_inputs(2, height, width)
    other = sdxl_inputs(2, height, width, seed=2)["sample"]
    return [
        first | {"sample": first["sample"] * (1 - 0.06 * i) + 0.08 * i * other, "timestep": 900 - 60 * i}  # type: ignore[operator]
        for i in range(STEPS)
    ]


def predict(height: int, width: int, configs: list[dict[str, Any]]) -> list[list[torch.Tensor]]:
    """On a rank: the outputs of every step, for one picture after another by one ParallelUNet."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    results = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        for config in configs:
            unet.begin(DistriConfig(warmup_steps=WARMUP, **config))
            results.append([unet(**inputs).sample for inputs in steps_of(height, width)])
            unet.end()
    return results


MANY = ("corrected_async_gn", "extrapolated")  # on many ranks, these modes will do
USUAL = {"bessel_correction": True, "comm_checkpoint": 60, "extrapolation": (0.5,) * 3, "extrapolation_memory": 0}
OTHER = {
    "bessel_correction": False,
    "comm_checkpoint": 7,
    "extrapolation": (0.9, 0.3, 0.6),
    "extrapolation_memory": (0.5, 0.2, 0.0),
}


@pytest.mark.parametrize(
    ("world", "height", "width", "modes", "options"),
    [
        (2, 32, 32, MODES, USUAL),
        (3, 28, 16, MODES, OTHER),
        (4, 16, 24, MODES, USUAL),
        (5, 24, 8, MANY, OTHER),
        (8, 32, 8, MANY, USUAL),
    ],
)
def test_every_mode_is_the_papers_arithmetic(
    world: int, height: int, width: int, modes: tuple[str, ...], options: dict[str, Any]
) -> None:
    configs: list[dict[str, Any]] = [{"mode": mode, "split_batch": False, **options} for mode in modes]
    per_rank = run_on_ranks(world, predict, height, width, configs)
    references = side_by_side(by_the_paper, [(world, height, width, config) for config in configs])
    for index, (config, expected) in enumerate(zip(configs, references, strict=True)):
        assert len(expected) == STEPS
        for step, reference in enumerate(expected):
            for rank, results in enumerate(per_rank):
                assert relative(results[index][step], reference) < 5e-6, (config, step, rank)


def by_the_paper(world: int, height: int, width: int, config: dict[str, Any]) -> list[torch.Tensor]:
    rows = [4 * share for share in split_units(height // 4, world)]
    return reference_steps(
        tiny_sdxl_unet(), rows, steps_of(height, width), mode=config["mode"], warmup=WARMUP,
        bessel=config["bessel_correction"], reach=config["extrapolation"],
        memory=config["extrapolation_memory"] or (0.0,) * 3,
    )  # fmt: skip


def test_stale_modes_differ_from_one_device_and_from_each_other() -> None:
    configs: list[dict[str, Any]] = [{"mode": mode, "split_batch": False} for mode in MODES]
    outputs = run_on_ranks(2, predict, 32, 32, configs)[0]
    unet = tiny_sdxl_unet()
    with torch.no_grad():
        plain = [unet(**inputs).sample for inputs in steps_of(32, 32)]
    for mode, steps in zip(MODES, outputs, strict=True):
        for step, (ours, exact) in enumerate(zip(steps, plain, strict=True)):
            fresh = mode == "full_sync" or step <= WARMUP
            assert (relative(ours, exact) < 5e-6) == fresh, (mode, step)
    last = [steps[-1] for steps in outputs]
    for i in range(len(MODES)):
        for j in range(i):
            assert relative(last[i], last[j]) > 1e-4, (MODES[i], MODES[j])


def repeat_inputs(modes: list[str]) -> list[torch.Tensor]:
    """On a rank: the last of five steps whose inputs are all the same."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    last = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        for mode in modes:
            unet.begin(DistriConfig(mode=mode, warmup_steps=0, split_batch=False))
            last.append([unet(**sdxl_inputs(2, 24, 16), timestep=500).sample for _ in range(4)][-1])
            unet.end()
    return last


def test_stale_equals_fresh_when_the_input_repeats() -> None:
    modes = ["sync_gn", "stale_gn", "corrected_async_gn", "extrapolated"]
    unet = tiny_sdxl_unet()
    with torch.no_grad():
        plain = unet(**sdxl_inputs(2, 24, 16), timestep=500).sample
    for outputs in run_on_ranks(3, repeat_inputs, modes):
        for mode, output in zip(modes, outputs, strict=True):
            assert relative(output, plain) < 5e-6, mode


def split_batch(world: int) -> list[torch.Tensor]:
    """On a rank: every method and mode with the guidance branches on different ranks, and without guidance."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    outputs = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        for mode in ("full_sync", "corrected_async_gn"):
            unet.begin(DistriConfig(mode=mode, warmup_steps=0))
            outputs += [unet(**inputs).sample for inputs in steps_of(16, 16)[:2]]
            unet.end()
        unet.begin(DistriConfig(mode="full_sync"), guided=False)  # one branch: all ranks on the patch axis
        inputs = sdxl_inputs(1, 16, 16)
        outputs.append(unet(**inputs, timestep=500).sample)
        unet.end()
    return outputs


@pytest.mark.parametrize("world", [2, 4])
def test_guidance_branches_on_different_ranks(world: int) -> None:
    unet = tiny_sdxl_unet()
    with torch.no_grad():
        plain = [unet(**inputs).sample for inputs in steps_of(16, 16)[:2]]
        alone = unet(**sdxl_inputs(1, 16, 16), timestep=500).sample
    for outputs in run_on_ranks(world, split_batch, world):
        assert relative(outputs[0], plain[0]) < 5e-6
        assert relative(outputs[1], plain[1]) < 5e-6
        assert relative(outputs[2], plain[0]) < 5e-6  # the warm-up step
        # With two ranks the patch axis has length one: nothing is displaced.
        assert (relative(outputs[3], plain[1]) < 5e-6) == (world == 2)
        assert relative(outputs[4], alone) < 5e-6


def naive(schemes: list[str]) -> list[list[torch.Tensor]]:
    """On a rank: two steps of naive patches by every scheme."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    outputs = []
    with torch.no_grad(), open_mesh(DistriConfig()) as mesh:
        unet = ParallelUNet(tiny_sdxl_unet(), DistriConfig(), mesh)
        for scheme in schemes:
            unet.begin(DistriConfig(parallelism="naive_patch", split_scheme=scheme, split_batch=False))
            outputs.append([unet(**inputs).sample for inputs in steps_of(24, 28)[:2]])
    return outputs


def test_naive_patches_are_pictures_of_their_own() -> None:
    schemes = ["row", "col", "alternate"]
    unet = tiny_sdxl_unet()

    def by(dim: int, sizes: list[int], inputs: dict[str, Any]) -> torch.Tensor:
        return torch.cat([unet(**inputs | {"sample": part}).sample for part in inputs["sample"].split(sizes, dim)], dim)

    with torch.no_grad():
        first, second = steps_of(24, 28)[:2]
        rows = [by(2, [8, 8, 8], first), by(2, [8, 8, 8], second)]
        cols = [by(3, [12, 8, 8], first), by(3, [12, 8, 8], second)]
    for outputs in run_on_ranks(3, naive, schemes):
        for ours, expected in zip(outputs, [rows, cols, [rows[0], cols[1]]], strict=True):
            assert relative(ours[0], expected[0]) < 1e-6
            assert relative(ours[1], expected[1]) < 1e-6


def sd15(height: int, width: int) -> torch.Tensor:
    """On a rank: SD 1.5's architecture under full_sync."""
    from distri_engine import DistriConfig, ParallelUNet, open_mesh

    config = DistriConfig(mode="full_sync", split_batch=False)
    generator = torch.Generator().manual_seed(0)
    sample, text = (torch.randn(*shape, generator=generator) for shape in ((2, 4, height, width), (2, 7, 48)))
    with torch.no_grad(), open_mesh(config) as mesh:
        unet = tiny_sd15_unet()
        both = [ParallelUNet(unet, config, mesh)(sample, 400, text).sample, unet(sample, 400, text).sample]
    return torch.stack(both)


def test_sd15_architecture_is_exact_too() -> None:
    for ours, plain in run_on_ranks(3, sd15, 32, 16):
        assert relative(ours, plain) < 5e-6
