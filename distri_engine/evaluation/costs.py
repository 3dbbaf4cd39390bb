"""What a step costs on any number of ranks at any size, in closed form: every count is a sum of terms that follow the
shape of a rank's share. How the coefficients are found is counting.py's business; this file is free of torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from distri_engine.bands import split_units
from distri_engine.evaluation.machine import Work

CONFIGS = Path(__file__).parent / "configs"
_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}
_BYTES = ("moved", "waited", "posted", "moments_size")
# What in a UNet's settings changes its costs. Files leave out what is None, False or older than diffusers' defaults.
_DECISIVE = (
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "transformer_layers_per_block",
    "attention_head_dim", "num_attention_heads", "cross_attention_dim", "down_block_types", "up_block_types",
    "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim", "use_linear_projection",
    "only_cross_attention", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim",
)  # fmt: skip

SINGLE = "single"  # the whole picture on one device
GUIDANCE = "guidance"  # the whole picture, one guidance branch on each of two devices
SYNC = "sync"  # a band of it, everything fresh
STALE = "stale"  # a band of it, displaced


def tensor(patches: int) -> str:
    """The family of tensor parallelism on `patches` ranks a guidance branch: heads do not divide smoothly."""
    return f"tensor {patches}"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one rank does of a picture. Lengths in latent cells."""

    rows: int  # of the picture
    cols: int
    own: int  # rows of the largest band
    patches: int  # ranks that share a guidance branch
    branches: int  # guidance branches on ranks of their own: 1 or 2
    batch: int  # guidance branches of the picture: 1 or 2

    @property
    def terms(self) -> dict[str, float]:
        """What counts are sums of. Areas and widths in units of 32 cells, so that no coefficient is tiny."""
        mine, band, picture = self.batch // self.branches, self.own * self.cols / 1024, self.rows * self.cols / 1024
        width, peers, others = self.cols / 32, self.patches - 1, self.patches * self.branches - 1
        neighbours = min(peers, 2)  # of a rank that is not at the picture's edge, if there is one
        return {
            "once": 1.0,
            "branch": mine,
            "band": band,
            "branch band": mine * band,
            "branch band picture": mine * band * picture,  # self-attention: own queries, everybody's keys
            "branch width": mine * width,
            "neighbour": neighbours,
            "branch neighbour width": mine * neighbours * width,  # halos
            "peer": peers,
            "branch peer": mine * peers,
            "branch peer band": mine * peers * band,  # keys and values
            "other": others,
            "branch other band": mine * others * band,  # the noise prediction
        }


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The coefficients of one UNet: family -> count (a field of Work) -> term -> coefficient; none is 0."""

    unet: str  # fingerprint of the UNet's settings
    unit: int  # latent rows that a band is a multiple of
    mode: str  # displaced mode that was counted
    dtype: str  # of weights and activations: "float16", "float32"
    families: Mapping[str, Mapping[str, Mapping[str, float]]]

    def work(self, family: str, share: Share) -> Work:
        """One step. Raises KeyError for a family that was not counted."""
        terms = share.terms
        counts = self.families[family].items()
        return Work(**{name: sum(factor * terms[term] for term, factor in row.items()) for name, row in counts})

    def own_rows(self, rows: int, patches: int) -> int:
        """Rows of the largest of `patches` bands. Raises ValueError if there are fewer units than ranks."""
        return split_units(rows // self.unit, patches)[0] * self.unit

    def of(self, dtype: str) -> Costs:
        """The same in another type of number: bytes grow with it, but for the moments, which are few."""
        ratio = _SIZES[dtype] / _SIZES[self.dtype]
        families = {
            family: {
                count: {term: factor * ratio for term, factor in row.items()} if count in _BYTES else row
                for count, row in counts.items()
            }
            for family, counts in self.families.items()
        }
        return replace(self, dtype=dtype, families=families)

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Costs:
        """Raises ValueError for anything but what `as_json` made."""
        try:
            families = {
                str(family): {
                    field.name: {str(term): float(factor) for term, factor in counts[field.name].items()}
                    for field in fields(Work)
                }
                for family, counts in found["families"].items()
            }
            about = {name: str(found[name]) for name in ("unet", "mode", "dtype")}
            return cls(unit=int(found["unit"]), families=families, **about)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no costs: {error!r}; count them again") from None


def fingerprint(unet_config: Mapping[str, Any]) -> str:
    """Of what in a UNet's settings changes its costs."""
    decisive = [unet_config.get(name) or None for name in _DECISIVE]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


@cache
def _counted_before() -> dict[str, Costs]:
    found = [Costs.from_json(json.loads(path.read_text())) for path in sorted(CONFIGS.glob("*_costs.json"))]
    return {costs.unet: costs for costs in found}


def known_costs(unet_config: Mapping[str, Any], dtype: str) -> Costs | None:
    """The costs of a UNet that come with the engine, counted before; None if it is another UNet."""
    costs = _counted_before().get(fingerprint(unet_config))
    return costs.of(dtype) if costs else None
