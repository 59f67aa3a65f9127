"""Writing a trained pipeline as a stock diffusers folder in half precision, at once or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn


def export_model(
    pipeline: DiffusionPipeline,
    denoiser: nn.Module,
    weights: Mapping[str, Tensor],
    text_encoders: Sequence[str],
    target: Path,
) -> None:
    """Write `pipeline` with `weights` in its denoiser to the folder `target`, in float16, replacing what was there.

    The pipeline is as before afterwards. `text_encoders` are the names of its text encoders.
    """
    kept = {name: value.clone() for name, value in denoiser.state_dict().items()}
    denoiser.load_state_dict(weights)
    fresh = target.with_name(target.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(fresh)
    pipeline.to(torch.float32)
    for name in text_encoders:
        _load_as_float32(fresh / name / "config.json")
    denoiser.load_state_dict(kept)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)


def _load_as_float32(configuration: Path) -> None:
    """The weights are stored in half the space; on a CPU `from_pretrained` must still give a float32 model."""
    settings = json.loads(configuration.read_text())
    configuration.write_text(json.dumps({**settings, "dtype": "float32"}, indent=2) + "\n")
