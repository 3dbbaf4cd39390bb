"""Take: one finished picture of a run, with what is needed to show, compare and repeat it. Takes come from the live
update or from the history and look the same afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from distri_engine.bands import cut_cols, cut_rows, patch_ranks, used_ranks
from distri_engine.config import SIZE_MULTIPLE, DistriConfig
from distri_engine.request import GenerationRequest
from launcher.schema import Record, Update
from launcher.web.names import shown_seconds

LATENT = 8  # picture pixels a latent cell


@dataclass(frozen=True, kw_only=True)
class Take:
    """One finished picture."""

    id: str
    method: str  # DistriConfig.parallelism
    picture: str  # path of the PNG
    request: dict[str, Any]  # resolved GenerationRequest
    config: dict[str, Any]  # DistriConfig
    report: dict[str, Any]  # as `generate --report` writes it

    @classmethod
    def of(cls, source: Update | Record) -> Take | None:
        """The take that an update or a history record tells of; None if there is no picture."""
        if source.state != "done" or not source.picture or source.report is None:
            return None
        method = str(source.config.get("parallelism", "patch"))
        return cls(
            id=source.id,
            method=method,
            picture=source.picture,
            request=source.request,
            config=source.config,
            report=source.report,
        )

    @property
    def ranks(self) -> int:
        """How many ranks the group had."""
        return int(self.report.get("ranks", 1))

    @property
    def parts(self) -> dict[str, float]:
        """Seconds spent on text, denoising and decoding."""
        seconds = self.report.get("seconds", {})
        return {name: float(seconds.get(name) or 0) for name in ("text", "denoise", "decode")}

    @property
    def seconds(self) -> float:
        """Their sum, as the page prints it."""
        return shown_seconds(sum(self.parts.values()))

    @property
    def waiting(self) -> float:
        """Share of the denoising in which the slowest rank of each step waited for its peers."""
        wait = whole = 0.0
        for step in self.report.get("steps", []):
            slowest = max(step["ranks"], key=lambda rank: rank["compute_ms"] + rank["wait_ms"])
            wait += slowest["wait_ms"]
            whole += slowest["compute_ms"] + slowest["wait_ms"]
        return wait / whole if whole else 0.0

    def same_size(self, other: Take) -> bool:
        """Whether the two pictures can be laid over each other."""
        return all(self.request.get(side) == other.request.get(side) for side in ("height", "width"))

    def _asked(self) -> tuple[DistriConfig, GenerationRequest]:
        names = DistriConfig.__dataclass_fields__
        config = DistriConfig(**{name: value for name, value in self.config.items() if name in names})
        return config, GenerationRequest(**self.request)

    @property
    def uncut(self) -> bool:
        """Whether several devices made it with a guidance branch each, and no patch was cut."""
        if self.method != "patch":
            return False
        config, request = self._asked()
        return patch_ranks(request, config, self.ranks) == 1 < used_ranks(config, self.ranks)

    def boxes(self) -> tuple[tuple[int, int, int, int], ...]:
        """The patches in picture pixels (left, top, right, bottom), in rank order; empty for one device."""
        if self.method not in ("patch", "naive_patch"):
            return ()
        config, request = self._asked()
        used, patches = used_ranks(config, self.ranks), patch_ranks(request, config, self.ranks)
        height, width = (request.height or 0) // LATENT, (request.width or 0) // LATENT
        cut = cut_cols if self.method == "naive_patch" and config.split_scheme == "col" else cut_rows
        boxes = tuple(box.pixels(LATENT) for box in cut(height, width, SIZE_MULTIPLE // LATENT, patches))
        return boxes * (used // patches)  # with guidance spread over ranks, both branches cut alike


def by_method(sources: Iterable[Update | Record]) -> dict[str, Take]:
    """The takes among `sources`, by method, in the order given."""
    takes = (Take.of(source) for source in sources)
    return {take.method: take for take in takes if take is not None}
