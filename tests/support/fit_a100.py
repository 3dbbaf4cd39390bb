"""How the planner's A100 was found: `python -m tests.support.fit_a100` fits its figures to the published latencies, and
to those of two picture sizes in turn, to see how far off the third one's are then.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from distri_engine.evaluation.costs import Costs, known_costs
from distri_engine.evaluation.machine import Machine
from distri_engine.evaluation.models import unet_config
from distri_engine.evaluation.published import Cell, check_published

# What the data sheet says, and a guess at the rest.
START = Machine(flops=312e12, bandwidth=300e9, memory=2.0e12, launch_s=5e-6, message_s=20e-6, overlap=0.5)


def fit(costs: Costs, without: int | None = None) -> list[Cell]:
    """All cells, predicted by the machine that fits those of every size but `without` best: damped Gauss-Newton on the
    logarithms of figures and errors.
    """

    def machine(x: np.ndarray) -> Machine:
        return Machine(**dict(zip(names, np.exp(x).tolist(), strict=True)))

    def errors(x: np.ndarray) -> np.ndarray:
        cells = check_published(costs, machine(x))
        return np.array([np.log1p(cell.error) for cell in cells if cell.side != without])

    names = [field.name for field in dataclasses.fields(Machine)]
    x, step = np.log([getattr(START, name) for name in names]), 1e-4
    for _ in range(60):
        slopes = [(errors(x + step * axis) - errors(x)) / step for axis in np.eye(len(x))]
        x = x - 0.5 * np.clip(np.linalg.lstsq(np.array(slopes).T, errors(x))[0], -0.5, 0.5)
    print(f"fitted to {'all' if without is None else f'all but {without}'}: {machine(x)}")
    return check_published(costs, machine(x))


if __name__ == "__main__":
    sdxl = known_costs(unet_config("sdxl"), "float16")
    assert sdxl is not None
    fit(sdxl)
    for side in (1024, 2048, 3840):
        left_out = [abs(cell.error) for cell in fit(sdxl, side) if cell.side == side]
        print(f"{side}: {100 * sum(left_out) / len(left_out):.0f} % in the mean, {100 * max(left_out):.0f} % at worst")
