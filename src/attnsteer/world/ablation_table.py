"""The ablation's table from its folders of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attnsteer.evaluate.statistics import Estimate, wilson
from attnsteer.jobs import read_records
from attnsteer.world.chains import chains, rendered_features
from attnsteer.world.distances import RelativeDistances
from attnsteer.world.variants import VARIANTS

FEATURES = ("features.bin", "redrawn.bin")


@dataclass
class Results:
    """What is known of one variant.

    Attributes:
        right: For each kind, whether each picture shows what was asked.
        present: For each kind, whether each picture holds all objects.
        features: For each kind, of its pictures.
        redrawn: For each kind, of renderings of what the detector sees in them.
        seconds: Per picture, mean over the batches.
        evaluations: Likewise; rows that the denoiser evaluated.
    """

    right: dict[str, list[bool]]
    present: dict[str, list[bool]]
    features: dict[str, Tensor]
    redrawn: dict[str, Tensor]
    seconds: float
    evaluations: float


def read_results(folder: Path, kinds: Sequence[str]) -> Results:
    """Read a variant's finished batches.

    Raises: ValueError if none is finished.
    """
    records = list(read_records(folder, files=True))
    if not records:
        raise ValueError(f"{folder} holds no finished batch yet")
    right: dict[str, list[bool]] = {kind: [] for kind in kinds}
    present: dict[str, list[bool]] = {kind: [] for kind in kinds}
    features: dict[str, dict[str, list[Tensor]]] = {name: {kind: [] for kind in kinds} for name in FEATURES}
    for record in records:
        kind = record.data["kind"]
        right[kind] += record.data["right"]
        present[kind] += record.data["present"]
        for name, of_kind in features.items():
            values = torch.frombuffer(bytearray(record.files[name]), dtype=torch.float32)
            of_kind[kind].append(values.view(len(record.data["right"]), -1))
    means = [sum(record.data[name] for record in records) / len(records) for name in ("seconds", "evaluations")]
    own, drawn = ({kind: torch.cat(parts) for kind, parts in features[name].items() if parts} for name in FEATURES)
    return Results(right, present, own, drawn, *means)


def table(folders: Mapping[str, Path], kinds: Sequence[str]) -> str:
    """A plain-text table, one row per variant; "plain" must be among them.

    Args:
        folders: Results by the variant's key.
        kinds: Kinds of prompts, for the columns.
    """
    results = {name: read_results(folder, kinds) for name, folder in folders.items()}
    plain = results["plain"]
    distances, looks = distances_from(plain), looks_from(plain)
    heads = [f"{kind:>20}" for kind in ("1 relation", "2 relations", "3 relations")[: len(kinds)]]
    lines = [f"{'':40}{''.join(heads)}{'all objects':>20}{'look':>20}{'distance':>20}{'time':>7}{'work':>7}"]
    for name, found in results.items():
        shares = [_share(found.right[kind]) for kind in kinds]
        everything = [value for kind in kinds for value in found.present[kind]]
        distance, look = distances.of(found.features), looks.of(found.features, found.redrawn)
        time, work = found.seconds / plain.seconds, found.evaluations / max(plain.evaluations, 1e-9)
        cells = "".join(f" {cell:>19}" for cell in (*shares, _share(everything), _ratio(look), _ratio(distance)))
        lines.append(f"{VARIANTS[name].title:40}{cells}{f'x{time:.2f}':>7}{f'x{work:.2f}':>7}")
    return "\n".join(lines)


def _share(values: Sequence[bool]) -> str:
    if not values:
        return "-"
    low, high = wilson(sum(values), len(values))
    return f"{100 * sum(values) / len(values):.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def distances_from(plain: Results) -> RelativeDistances:
    """Frechet distances to rendered scenes of the same prompts, relative to those of the unsteered pictures."""
    counts = {kind: len(rows) for kind, rows in plain.features.items()}
    tasks = {kind: own[: counts[kind]] for kind, own in chains(max(counts.values())).items() if kind in counts}
    return RelativeDistances(plain.features, rendered_features(tasks))


def looks_from(plain: Results) -> RelativeDistances:
    """Frechet distances of pictures to renderings of what is seen in them, relative to those of the unsteered ones.

    Where objects stand, and which are there, is the same on both sides; what is left is how they look.
    """
    return RelativeDistances(plain.features, plain.redrawn, paired=True)


def _ratio(ratio: Estimate) -> str:
    return f"x{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
