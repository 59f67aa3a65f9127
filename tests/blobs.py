"""Synthetic attention maps: two bright blobs that stand in a known relation, with noise and, on request, a leak."""

from pathlib import Path

import torch
from torch import Tensor

from attnsteer.steering.dataset import Manifest, MapBatch, ShardWriter

RELATIONS = ("to the left of", "to the right of", "above", "below")
STEP = ((-1, 0), (1, 0), (0, -1), (0, 1))  # x to the right, y downwards


def blob(x: Tensor, y: Tensor, size: int, radius: float = 0.12) -> Tensor:
    """(N, size, size) maps with a Gaussian at (x, y), both in [0, 1]."""
    grid = (torch.arange(size) + 0.5) / size
    distance = (grid - x[:, None, None]) ** 2 + (grid[:, None] - y[:, None, None]) ** 2
    return torch.exp(-distance / (2 * radius**2))


def blob_maps(
    count: int,
    channels: int = 6,
    size: int = 8,
    leak: float = 0.0,
    noise: float = 0.3,
    wrong_share: float = 0.5,
    seed: int = 0,
) -> MapBatch:
    """Random placements; `leak` writes the prompt's word, wrong in a share of the samples, into channel 0."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (count,), generator=draw)
    wrong = torch.rand(count, generator=draw) < wrong_share
    other = (label + torch.randint(1, 4, (count,), generator=draw)) % 4
    prompt = torch.where(wrong, other, label)
    step = torch.tensor(STEP, dtype=torch.float32)[label]
    centre = 0.5 + 0.1 * (torch.rand(count, 2, generator=draw) - 0.5)
    half = 0.2 + 0.1 * torch.rand(count, 1, generator=draw)
    maps = noise * torch.rand(count, 2, channels, size, size, generator=draw)
    for which, sign in ((0, 1), (1, -1)):
        place = centre + sign * half * step
        maps[:, which] += (
            blob(place[:, 0], place[:, 1], size)[:, None] * torch.linspace(0.2, 1, channels)[:, None, None]
        )
    maps[:, :, 0] += leak * prompt[:, None, None, None]
    timestep = torch.randint(0, 3, (count,), generator=draw)
    return MapBatch(
        maps=maps.half(),
        label=label,
        prompt_relation=prompt,
        timestep=timestep,
        log_snr=-4.0 + 2.0 * timestep.float(),
        source=[f"{seed}-{number}" for number in range(count)],
    )


def write_blobs(folder: Path, *batches: MapBatch) -> Path:
    """One shard per batch."""
    channels, size = batches[0].maps.shape[2], batches[0].maps.shape[-1]
    manifest = Manifest(model_id="blobs", relations=RELATIONS, channels=channels, map_size=size)
    writer = ShardWriter(folder, manifest)
    for number, batch in enumerate(batches):
        writer.write(number, batch)
    return folder
