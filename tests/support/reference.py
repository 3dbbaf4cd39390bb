"""Displaced patch parallelism once more, in the plainest way: one process, one thread a rank, blocking all-gathers of
whole activations, arithmetic as the original's publication and code describe it. The oracle for the modes of the
engine.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn


class _Threads:
    """All-gather between threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._box: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=120)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self._box[rank] = value
        self._barrier.wait()
        values = list(self._box)
        self._barrier.wait()
        return values


class _Rank:
    """One rank's patched UNet. Remembers, for every layer, what all ranks had in the previous step."""

    def __init__(
        self,
        unet: nn.Module,
        rank: int,
        rows: list[int],
        threads: _Threads,
        mode: str,
        warmup: int,
        bessel: bool,
        reach: dict[str, float],
        memory: dict[str, float],
    ) -> None:
        self.rank, self.rows, self.threads = rank, rows, threads
        self.mode, self.warmup, self.bessel = mode, warmup, bessel
        self.step = -1
        self.old: dict[str, list[torch.Tensor]] = {}
        self.own: dict[str, list[torch.Tensor]] = {}
        self.reach, self.memory = reach, memory
        self.tree = copy.deepcopy(unet)
        for path, module in list(self.tree.named_modules()):
            if "controlnet_cond_embedding." in path:
                continue
            if path.endswith(("conv_in", "controlnet_cond_embedding")):  # sees the whole picture
                module.forward = self._bind(self._conv_in, path, module)
            elif isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1:
                module.forward = self._bind(self._conv, path, module)
            elif isinstance(module, nn.GroupNorm):
                module.forward = self._bind(self._norm, path, module)
            elif isinstance(module, Attention) and not module.is_cross_attention:
                for name in ("to_k", "to_v"):
                    child = getattr(module, name)
                    child.forward = self._bind(self._project, f"{path}.{name}", child)

    def _bind(self, function: Callable[..., Any], path: str, module: nn.Module) -> Callable[[torch.Tensor], Any]:
        plain = type(module).forward
        return lambda x: function(path, module, lambda y: plain(module, y), x)

    @property
    def warm(self) -> bool:
        return self.step <= self.warmup

    def _peers(self, path: str, value: torch.Tensor, fresh: bool) -> list[torch.Tensor]:
        """Everybody's values as this step's layer sees them, own fresh; remembers what the next step will see."""
        if fresh or self.warm:
            seen = self.threads.gather(self.rank, value)
            self.old[path] = seen
            if self.mode == "extrapolated":
                self.old[path] = self.threads.gather(self.rank, self._foresee(path, value))
            return seen
        seen = list(self.old[path])
        seen[self.rank] = value
        return seen

    def _foresee(self, path: str, value: torch.Tensor) -> torch.Tensor:
        """x(t) + a (d(t) + m d(t-1)), the whole band's; of moments, mean and deviation are extrapolated."""
        if self.mode != "extrapolated":
            return value
        if "norm" in path and not path.endswith(".deviation"):
            now = torch.stack([value[0], (value[1] - value[0] ** 2).sqrt()])
            mean, deviation = self._foresee(f"{path}.deviation", now)
            return torch.stack([mean, mean**2 + deviation.clamp(min=0) ** 2])
        past = self.own[path] = [*self.own.get(path, []), value][-3:]
        past = [past[0]] * (3 - len(past)) + past
        kind = "stats" if "norm" in path else "gather" if path.endswith(("to_k", "to_v")) else "halo"
        return value + self.reach[kind] * (past[2] - past[1] + self.memory[kind] * (past[1] - past[0]))

    def after_step(self) -> None:
        """Deliver what was sent during a stale step."""
        for path in sorted(self._sent):
            everybody = self.threads.gather(self.rank, self._sent[path])
            if self.mode != "no_sync":
                self.old[path] = everybody

    def run(self, step: int, inputs: dict[str, Any]) -> torch.Tensor:
        self.step, self._sent = step, {}
        output = self.tree(**inputs, return_dict=False)[0]
        self.after_step()
        return output

    def _conv_in(self, path: str, conv: nn.Conv2d, plain: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
        top = sum(self.rows[: self.rank])
        return plain(x)[:, :, top : top + self.rows[self.rank]]

    def _conv(self, path: str, conv: nn.Conv2d, plain: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
        seen = self._peers(path, x, self.mode == "full_sync")
        if not self.warm:
            self._sent[path] = self._foresee(path, x)
        top = sum(part.shape[2] for part in seen[: self.rank]) // conv.stride[0]
        return plain(torch.cat(seen, dim=2))[:, :, top : top + x.shape[2] // conv.stride[0]]

    def _project(self, path: str, linear: nn.Module, plain: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
        value = plain(x)
        seen = self._peers(path, value, self.mode == "full_sync")
        if not self.warm:
            self._sent[path] = self._foresee(path, value)
        return torch.cat(seen, dim=1)

    def _norm(self, path: str, norm: nn.GroupNorm, plain: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
        if not self.warm and self.mode in ("separate_gn", "no_sync"):
            return plain(x)
        grouped = x.double().reshape(x.shape[0], norm.num_groups, -1)
        own = torch.stack([grouped.mean(-1), (grouped**2).mean(-1)])
        plain: torch.Tensor | None = None  # the variance that stands in for an impossible one
        share = torch.tensor(self.rows, dtype=torch.float64) / sum(self.rows)

        def average(parts: list[torch.Tensor]) -> torch.Tensor:
            return sum(weight * part for weight, part in zip(share, parts, strict=True))  # type: ignore[return-value]

        if self.warm or self.mode in ("full_sync", "sync_gn"):
            seen = self.threads.gather(self.rank, own)
            total = average(seen)
            self.old[path] = seen  # what was sent for the next step
            if self.mode == "extrapolated":
                self.old[path] = self.threads.gather(self.rank, self._foresee(path, own))
        elif self.mode in ("corrected_async_gn", "extrapolated"):
            seen = list(self.old[path])
            total = average(seen) + own - seen[self.rank]
            seen[self.rank] = own
            plain = average(seen)[1] - average(seen)[0] ** 2
            self._sent[path] = self._foresee(path, own)
        else:
            seen = list(self.old[path])
            seen[self.rank] = own
            total = average(seen)
            self._sent[path] = own
        variance = total[1] - total[0] ** 2
        if plain is not None:
            variance = torch.where(variance < share[self.rank] * (own[1] - own[0] ** 2), plain, variance)
        if self.bessel:
            variance = variance * grouped.shape[-1] / (grouped.shape[-1] - 1)
        y = (grouped - total[0][..., None]) / (variance[..., None] + norm.eps).sqrt()
        y = y.reshape(x.shape).to(x.dtype)
        return y * norm.weight[:, None, None] + norm.bias[:, None, None]


def reference_steps(
    unet: nn.Module,
    rows: list[int],
    steps: list[dict[str, Any]],
    *,
    mode: str,
    warmup: int,
    bessel: bool,
    reach: tuple[float, float, float] = (0.5, 0.5, 0.5),
    memory: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> list[torch.Tensor]:
    """The UNet's output at every step, assembled from len(rows) simulated ranks with bands of `rows` latent rows."""
    threads = _Threads(len(rows))
    kinds, memories = (dict(zip(("gather", "halo", "stats"), factors, strict=True)) for factors in (reach, memory))
    ranks = [_Rank(unet, rank, rows, threads, mode, warmup, bessel, kinds, memories) for rank in range(len(rows))]
    outputs: list[list[torch.Tensor]] = [[] for _ in rows]
    errors: list[BaseException] = []

    def work(rank: _Rank) -> None:
        try:
            with torch.no_grad():
                for index, inputs in enumerate(steps):
                    outputs[rank.rank].append(rank.run(index, inputs))
        except BaseException as error:
            errors.append(error)
            threads._barrier.abort()

    workers = [threading.Thread(target=work, args=(rank,)) for rank in ranks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return [torch.cat([outputs[rank][index] for rank in range(len(rows))], dim=2) for index in range(len(steps))]
