"""Figures of a fidelity run: distances between sets of features, and CLIP scores."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attnsteer.evaluate.fidelity import REFERENCE, SUITES
from attnsteer.evaluate.methods import Method, parse_methods
from attnsteer.evaluate.report.tables import pipes, points, probability, seconds, times
from attnsteer.evaluate.statistics import Comparison, Estimate, compare, mean_of
from attnsteer.jobs import Record, RunFolder, read_records


@dataclass(frozen=True)
class FidelityMethod:
    """One method: distances by their printable names, the CLIP score if there is one, and costs per picture."""

    method: Method
    distances: Mapping[str, float]
    clip: Estimate | None
    clip_against: Comparison | None
    seconds: float
    relative: float


@dataclass(frozen=True)
class FidelityRun:
    """A fidelity run, finished or not."""

    path: Path
    settings: Mapping[str, Any]
    description: Mapping[str, Any]
    extractor: str
    pictures: int
    of: int
    methods: Sequence[FidelityMethod]

    @property
    def title(self) -> str:
        """For people."""
        return "Shapes: fidelity" if self.settings["suite"].startswith("shapes") else "Fidelity"

    @property
    def rows(self) -> list[list[str]]:
        """Header and rows of the table."""
        names = list(self.methods[0].distances)
        clip = ["CLIP score", "against Off", "p"] if self.methods[0].clip else []
        head = ["Method", *names, *clip, "Cost", "Time per picture"]
        rows = []
        for m in self.methods:
            row = [m.method.title, *(f"{m.distances[name]:.4g}" for name in names)]
            if m.clip is not None:
                score = f"{m.clip.value:.2f} [{m.clip.low:.2f}, {m.clip.high:.2f}]"
                row += [score, points(m.clip_against, 1.0), probability(m.clip_against)]
            rows.append([*row, times(m.relative), seconds(m.seconds)])
        return [head, *rows]

    @property
    def caption(self) -> str:
        """What was measured and how."""
        return (
            f"{self.pictures} pictures per method and as many references, features: {self.extractor}. Lower distances"
            " are better; they compare only between sets of equal size and under one extractor. CLIP scores have"
            " bootstrap 95 % intervals."
        )


def is_fidelity(path: str | Path) -> bool:
    """Whether a run is one of a fidelity suite."""
    return RunFolder(path).description()["fixed"]["settings"].get("suite") in SUITES


def read_fidelity(path: str | Path) -> FidelityRun:
    """Read a run and work out its figures.

    Raises: ValueError if it holds fewer than two finished pictures, or a shard is damaged.
    """
    described = RunFolder(path).description()
    settings = described["fixed"]["settings"]
    records = list(read_records(path, files="npy"))
    if len(records) < 2:
        raise ValueError(f"{path} holds {len(records)} finished pictures; distances need two or more")
    methods = parse_methods(settings["methods"])
    base = methods[0].name
    return FidelityRun(
        Path(path), settings, described, records[0].data["detector"], len(records), described["fixed"]["items"],
        [_figures(records, method, base, settings) for method in methods],
    )  # fmt: skip


def fidelity_markdown(run: FidelityRun) -> str:
    """A heading, the caption and the table."""
    head, *rows = run.rows
    return f"## {run.title}: {run.settings['model']}\n\n{run.caption}\n\n{pipes(head, rows)}"


def _figures(records: Sequence[Record], method: Method, base: str, settings: Mapping[str, Any]) -> FidelityMethod:
    results = [record.data["methods"][method.name] for record in records]
    others = [record.data["methods"][base] for record in records]
    clip, against = None, None
    if results[0]["clip"] is not None:
        scores, reference = [r["clip"] for r in results], [r["clip"] for r in others]
        clip, against = mean_of(scores), None if method.name == base else compare(reference, scores)
    spent = [sum(float(r["evaluations"]) for r in rows) for rows in (results, others)]
    time = sum(float(r["seconds"]) for r in results) / len(results)
    distances = _distances(records, method.name, settings)
    return FidelityMethod(method, distances, clip, against, time, spent[0] / spent[1])


def _distances(records: Sequence[Record], name: str, settings: Mapping[str, Any]) -> dict[str, float]:
    from attnsteer.evaluate.fidelity import patch_source
    from attnsteer.evaluate.metrics import frechet_distance, kernel_distance
    from attnsteer.evaluate.metrics.extractors import distance_name

    extractor, found = records[0].data["detector"], {}
    source = patch_source(settings["patches"])
    for suffix, patches in (("npy", None), *((("patches.npy", source.name),) if source else ())):
        pair = _stacked(records, name, suffix), _stacked(records, REFERENCE, suffix)
        found[distance_name("frechet", extractor, patches)] = frechet_distance(*pair)
        found[distance_name("kernel", extractor, patches)] = kernel_distance(*pair)
    return found


def _stacked(records: Sequence[Record], name: str, suffix: str) -> Any:
    import torch

    rows = [np.load(io.BytesIO(record.files[f"{name}.{suffix}"]), allow_pickle=False) for record in records]
    return torch.from_numpy(np.concatenate(rows))
