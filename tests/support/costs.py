"""Counts what the UNets cost that come with the engine, and writes it down, so that nobody has to wait for it:
`python -m tests.support.costs`. To be run again when the engine does something else in a step, which a test notices.
"""

from __future__ import annotations

import torch

from distri_engine.config import SyncMode
from distri_engine.evaluation.costs import CONFIGS
from distri_engine.evaluation.counting import count_costs
from distri_engine.evaluation.models import unet_on_meta
from launcher.files import write_json
from launcher.model import DEMO_MODEL

MODELS = {
    "sdxl_base_costs.json": ("sdxl", torch.float16, SyncMode.CORRECTED_ASYNC_GN),
    "demo_costs.json": (str(DEMO_MODEL), torch.float32, SyncMode.EXTRAPOLATED),
}

if __name__ == "__main__":
    for name, (model, dtype, mode) in MODELS.items():
        write_json(count_costs(unet_on_meta(model, dtype), mode, range(2, 9)).as_json(), CONFIGS / name)
        print(CONFIGS / name)
