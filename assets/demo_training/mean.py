"""The mean of the weights of two checkpoints of one training (Wortsman et al., "Model soups", 2022), part by part; what
is not weights is the second one's, the autoencoder too.

    python -m assets.demo_training.mean build/before build/demo/pipeline --output build/mean
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from assets.demo_training.start import WEIGHTS

PARTS = ("unet", "text_encoder", "text_encoder_2")


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Take the mean of two pipelines' weights.")
    parser.add_argument("first", type=Path, help="a pipeline folder")
    parser.add_argument("second", type=Path, help="another one of the same training")
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist yet")
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Read, average, write. Raises FileExistsError if the output is there, KeyError if the models differ."""
    shutil.copytree(options.second, options.output)
    for part in PARTS:
        file = Path(part, f"{WEIGHTS.get(part, 'model')}.safetensors")
        first, second = load_file(options.first / file), load_file(options.second / file)
        mean = {
            name: weight.float().lerp(first[name].float(), 0.5).to(weight.dtype)
            if weight.is_floating_point()
            else weight
            for name, weight in second.items()
        }
        save_file(mean, options.output / file, {"format": "pt"})


if __name__ == "__main__":
    main(parse_options())
