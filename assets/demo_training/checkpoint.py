"""What a training needs to go on after an interruption: weights, their running average, optimiser states and the
clock, in one safetensors file. Also that running average.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Modules = Mapping[str, torch.nn.Module]


class Average:
    """Exponential moving average of the weights of several modules; the pictures are made with it."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self.weights = {
            f"{name}/{key}": value.detach().clone()
            for name, key, value in _entries(modules)
            if value.is_floating_point()
        }

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the modules' present weights by 1 - `decay`."""
        present = {f"{name}/{key}": value for name, key, value in _entries(self._modules)}
        keys = list(self.weights)
        torch._foreach_lerp_([self.weights[key] for key in keys], [present[key] for key in keys], 1 - decay)

    @torch.no_grad()
    def copy_to(self, modules: Modules) -> None:
        """Write the average into `modules` of the same names and shapes."""
        for name, key, value in _entries(modules):
            if value.is_floating_point():
                value.copy_(self.weights[f"{name}/{key}"])


def _entries(modules: Modules) -> list[tuple[str, str, torch.Tensor]]:
    return [(name, key, value) for name, module in modules.items() for key, value in module.state_dict().items()]


def save(
    path: Path,
    modules: Modules,
    average: Average,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: dict[str, Any],
) -> None:
    """Write everything to `path`; an interruption leaves the previous file."""
    tensors = {f"weights/{name}/{key}": value for name, key, value in _entries(modules)}
    tensors |= {f"average/{key}": value for key, value in average.weights.items()}
    for index, optimizer in enumerate(optimizers):
        for param, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{param}/{key}": value for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_suffix(".writing")
    copies = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(copies, writing, metadata={"progress": json.dumps(progress)})
    writing.replace(path)


def load(path: Path, modules: Modules, average: Average, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Put everything back in place; returns the progress that was saved."""
    states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    weights: dict[str, dict[str, torch.Tensor]] = {name: {} for name in modules}
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
        for entry in file.keys():  # noqa: SIM118  (a file, not a dictionary)
            tensor = file.get_tensor(entry)
            kind, name, key = entry.split("/", 2)
            if kind == "weights":
                weights[name][key] = tensor
            elif kind == "average":
                average.weights[f"{name}/{key}"].copy_(tensor)
            else:
                param, slot = key.split("/")
                states[int(name)].setdefault(int(param), {})[slot] = tensor
    for name, module in modules.items():
        module.load_state_dict(weights[name])
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress
