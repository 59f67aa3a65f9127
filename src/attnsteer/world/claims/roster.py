"""Which embedded models there are, and what kind each is. Found without torch, so that a new model appears at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from attnsteer.compare.models import ModelSource, find_model
from attnsteer.world.models import embedded_models

ARCHITECTURES: Final = {
    "UNet2DConditionModel": "U-Net",
    "FluxTransformer2DModel": "MMDiT",
    "WanTransformer3DModel": "video",
}
"""Denoiser classes of the embedded models, and what people call them."""
CFG: Final = {"U-Net": "guidance_scale", "MMDiT": "true_cfg_scale", "video": "guidance_scale"}
"""The keyword of classifier-free guidance in the pipelines of each architecture."""
FEW: Final = 8
"""Models that are meant for at most so many steps are few-step models."""


@dataclass(frozen=True)
class WorldModel:
    """An embedded model at a number of steps that it is meant for.

    Attributes:
        name: As in `embedded_models`, or a diffusers folder.
        architecture: A value of `ARCHITECTURES`.
        steps: Denoising steps.
        guidance_scale: Its own default of classifier-free guidance; 1 is none.
        nag_scale: NAG's scale that its card advises.
        classifier: Whether it has a relation classifier.
        digest: Of its weights and settings; runs with another one are not gone on with.
        classifier_digest: The same of its classifier.
    """

    name: str
    architecture: str
    steps: int
    guidance_scale: float
    nag_scale: float
    classifier: bool
    digest: str = ""
    classifier_digest: str = ""

    @property
    def label(self) -> str:
        """For people: the name without the folder it lies in."""
        return Path(self.name).name

    @property
    def plain_folder(self) -> str:
        """Part of the names of runs that do not use its classifier."""
        return "-".join(filter(None, (self.label, self.digest)))

    @property
    def steered_folder(self) -> str:
        """Part of the names of runs that do."""
        return "-".join(filter(None, (self.plain_folder, self.classifier_digest)))

    @property
    def few_step(self) -> bool:
        """Whether it is a distilled model that draws in a few steps."""
        return self.steps <= FEW


@dataclass(frozen=True)
class Kind:
    """A kind of model that a claim is tried on.

    Attributes:
        architecture: A value of `ARCHITECTURES`.
        least: Fewest steps.
        most: Most steps.
        classifier: Whether it needs a relation classifier.
    """

    architecture: str
    least: int = 1
    most: int = 1000
    classifier: bool = False

    def __str__(self) -> str:
        steps = ""
        if self.most < 1000:
            steps = f" in {self.least} to {self.most} steps" if self.least < self.most else f" in {self.most} steps"
        elif self.least > FEW:
            steps = " in many steps"
        elif self.least > 1:
            steps = f" in {self.least} steps or more"
        return f"{self.architecture}{steps}{' with a relation classifier' if self.classifier else ''}"

    def fits(self, model: WorldModel) -> bool:
        """Whether a model is of this kind."""
        return (
            model.architecture == self.architecture
            and self.least <= model.steps <= self.most
            and (model.classifier or not self.classifier)
        )


MANY_STEPS: Final = (Kind("U-Net", FEW + 1), Kind("MMDiT", FEW + 1))
FEW_STEPS: Final = (Kind("U-Net", 3, FEW), Kind("MMDiT", 3, FEW), Kind("U-Net", 1, 2), Kind("MMDiT", 1, 2))
STEERED: Final = (Kind("U-Net", FEW + 1, classifier=True), Kind("MMDiT", FEW + 1, classifier=True))
CLASSIFIED: Final = STEERED[:1]
"""Of which classifiers are trained anew on less: the whole table has to fit into three hours."""
VIDEO: Final = (Kind("video"),)


def steps_of(source: ModelSource) -> tuple[WorldModel, ...]:
    """What a model is, from its folder and its card: once for each number of steps that the card names.

    Raises: ValueError if its denoiser is none of `ARCHITECTURES`, or its card does not say how many steps it takes.
    """
    index = json.loads((Path(source.location) / "model_index.json").read_text(encoding="utf-8"))
    classes = [entry[1] for entry in index.values() if isinstance(entry, list)]
    found = next((ARCHITECTURES[name] for name in classes if name in ARCHITECTURES), None)
    if found is None:
        raise ValueError(f"{source.name}: no denoiser of {', '.join(ARCHITECTURES)} in its model_index.json")
    own = source.defaults
    extra = own.get("extra", {})
    if "steps" not in own:
        raise ValueError(f"{source.name}: its attnsteer.json names no steps under defaults; publish the model again")
    model = WorldModel(
        source.name, found, int(own["steps"]), float(extra.get(CFG[found], own.get(CFG[found], 1.0))),
        float(own.get("nag_scale", 5.0)), source.classifier is not None, _digest(Path(source.location), own),
        _digest(Path(source.classifier)) if source.classifier else "",
    )  # fmt: skip
    counts = source.card.get("step_counts", [model.steps])
    return tuple(replace(model, steps=int(count)) for count in sorted(counts, reverse=True))


def world_models(names: Iterable[str] | None = None) -> tuple[WorldModel, ...]:
    """All embedded models, or those of these names or folders, each at every number of steps that it is meant for."""
    sources = (find_model(name) for name in (embedded_models() if names is None else names))
    return tuple(model for source in sources for model in steps_of(source))


def _digest(folder: Path, settings: Mapping[str, object] | None = None) -> str:
    """Six hexadecimal digits for the weights and configurations in a folder, and for the settings of its card."""
    found = hashlib.sha256(json.dumps(dict(settings or {}), sort_keys=True).encode())
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        apart = parts[0] in ("steering", "training") or file.name in ("attnsteer.json", "metrics.json")
        if file.suffix in (".json", ".safetensors") and not apart:
            found.update("/".join(parts).encode() + file.read_bytes())
    return found.hexdigest()[:6]


def of_kinds(models: Sequence[WorldModel], kinds: Sequence[Kind]) -> list[WorldModel]:
    """The models that are of one of the kinds, in the order of the kinds."""
    return list(dict.fromkeys(model for kind in kinds for model in models if kind.fits(model)))


def missing_kinds(models: Sequence[WorldModel], kinds: Sequence[Kind]) -> list[str]:
    """The kinds of which there is no model yet, in words."""
    return [str(kind) for kind in kinds if not any(kind.fits(model) for model in models)]
