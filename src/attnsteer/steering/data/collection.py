"""A collection of maps as a resumable job: shards of safetensors, wherever they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnsteer.jobs import Engine, Job, Outcome, run_job
from attnsteer.jobs.engines import rank_device
from attnsteer.steering.data.items import items_of, prompts_told
from attnsteer.steering.data.map_shards import SUFFIX, pack_maps, write_manifest
from attnsteer.steering.data.settings import FRACTIONS, CollectionSettings

if TYPE_CHECKING:
    import torch

    from attnsteer.compare.models import OpenModel
    from attnsteer.steering.data.collected import Collected
    from attnsteer.steering.recording import Recording
    from attnsteer.steering.shards import Manifest, MapBatch

Shard = tuple["MapBatch", "Manifest"]
Items = Sequence[Mapping[str, Any]]


def collection_job(settings: CollectionSettings, shard_size: int | None = None) -> Job:
    """The job that collects maps.

    Args:
        settings: What to collect.
        shard_size: Items per shard; None takes 8 batches (one, for samples).

    Raises: FileNotFoundError or ValueError if the data does not allow it.
    """
    own = {name: value for name, value in asdict(settings).items() if name != "device"}
    size = 1 if settings.source == "shapes" else settings.batch * (1 if settings.source == "samples" else 8)
    return Job(
        f"collect {settings.source}", items_of(settings), MapWorker(settings), own, shard_size or size, "picture",
        pack_maps, SUFFIX,
    )  # fmt: skip


def collect(
    settings: CollectionSettings, folder: str | Path, engine: Engine | None = None, *, shard_size: int | None = None,
    progress: bool = True,
) -> Outcome:  # fmt: skip
    """Collect maps into a folder that `attnsteer.steering.train.train_classifier` reads; goes on where it stopped.

    Args:
        settings: What to collect.
        folder: New, or that of an earlier run with the same settings.
        engine: Where; default this process.
        shard_size: Items that a killed process loses at most.
        progress: Show a bar.

    Raises: FileNotFoundError or ValueError if data, model or folder do not fit.
    """
    job = collection_job(settings, shard_size)
    try:
        return run_job(job, folder, engine, progress=progress)
    finally:
        if engine is None or engine.leads:
            write_manifest(folder)


@dataclass(frozen=True)
class MapWorker:
    """Loads the model in a working process, and does shards."""

    settings: CollectionSettings

    def __call__(self) -> Callable[[Items], Shard]:
        """Load everything; returns the function of the job."""
        return _Bench(self.settings).shard


class _Bench:
    """A loaded model, and the detector where one is needed."""

    def __init__(self, settings: CollectionSettings) -> None:
        from attnsteer.compare.models import find_model, open_model

        source = find_model(settings.model)
        self.model = open_model(source, device=rank_device(settings.device), dtype=settings.dtype, progress=False)
        self.model.pipe.set_progress_bar_config(disable=True)
        self.settings = resolved(settings, self.model)
        self.detector: Any = None
        if settings.source == "samples":
            from attnsteer.evaluate.detectors import make_detector

            self.detector = make_detector(settings.detector, self.model.device)

    def shard(self, items: Items) -> Shard:
        """Maps of a shard's items, and what they are."""
        from attnsteer.steering.data.collected import joined

        make = {"samples": self._sampled, "shapes": self._shapes}.get(self.settings.source, self._pictured)
        size = 1 if self.settings.source == "shapes" else self.settings.batch
        parts = [make(items[first : first + size]) for first in range(0, len(items), size)]
        return joined([part.batch for part in parts]), self._manifest(parts)

    def _pictured(self, items: Items) -> Collected:
        import torch

        from attnsteer.steering.data.pictures import Pictured, PicturePlan, picture_maps
        from attnsteer.steering.data.triplets import Triplet, dual_prompts

        own = self.settings
        triplets = [Triplet.from_item(item) for item in items]
        prompts = [
            dual_prompts(triplet, own.relations, articles=not own.published, seed=own.seed) for triplet in triplets
        ]
        side, folder = own.image_size or 0, Path(own.data or "")
        pictures = torch.stack([load_picture(folder / t.image, side, squash=own.squash) for t in triplets])
        twice = Pictured(
            pictures.repeat_interleave(2, dim=0), [p for pair in prompts for p in pair],
            [t.relation for t in triplets for _ in range(2)],
        )  # fmt: skip
        plan = PicturePlan(
            self._recording(), own.relations, own.record or (), own.num_inference_steps or 0, _method(own.method),
            {"guidance_scale": 1.0 if own.guidance_scale is None else own.guidance_scale, **self._call()},
        )  # fmt: skip
        return picture_maps(self.model.pipe, twice, plan, torch.Generator().manual_seed(_seed(own.seed, items)))

    def _sampled(self, items: Items) -> Collected:
        import torch

        from attnsteer.steering.collect import sampled
        from attnsteer.steering.data.on_policy import DetectorLabels, sample_prompt

        own = self.settings
        pairs = [(item["subject"], item["object"]) for item in items]
        label = DetectorLabels(self.detector, pairs, own.relations)
        call = {
            **self._call(), "num_inference_steps": own.num_inference_steps, "height": own.image_size,
            "width": own.image_size, "generator": [torch.Generator().manual_seed(item["seed"]) for item in items],
        }  # fmt: skip
        if own.guidance_scale is not None:
            call["guidance_scale"] = own.guidance_scale
        return sampled(
            self.model.pipe, [sample_prompt(dict(item)) for item in items], label, self._recording(), own.relations,
            steps=own.record or (), call=call,
        )  # fmt: skip

    def _shapes(self, items: Items) -> Collected:
        from attnsteer.steering.data.shapes import shapes_maps

        return shapes_maps(self.model.pipe, items[0], self._recording(), self.settings.guidance_scale)

    def _call(self) -> dict[str, Any]:
        length = self.settings.text_length
        given = {} if length is None else {"max_sequence_length": length}
        return {**given, **self.settings.extra}

    def _recording(self) -> Recording:
        from attnsteer.steering.recording import Recording

        own = self.settings
        return Recording(own.layers, own.map_size, own.normalise, own.text_length)

    def _manifest(self, parts: Sequence[Collected]) -> Manifest:
        from attnsteer.steering.shards import Manifest

        own, pipe, part = self.settings, self.model.pipe, parts[0]
        lengths = {part.text_length for part in parts}
        kept = (
            "source",
            "split",
            "published",
            "method",
            "num_inference_steps",
            "image_size",
            "guidance_scale",
            "seed",
        )
        settings = {
            **{name: getattr(own, name) for name in kept}, "steps": own.record,
            "text_length": lengths.pop() if len(lengths) == 1 else None,
            "scheduler": type(pipe.scheduler).__name__, "revision": revision_of(pipe), "pipeline": type(pipe).__name__,
            "prompts": prompts_told(own), "channel_layers": part.channel_layers,
            "detector": getattr(self.detector, "name", None),
        }  # fmt: skip
        relations, channels = part.relations or own.relations, sum(count for _, count, _ in part.channel_layers)
        return Manifest(own.model, relations, channels, own.map_size, own.layers, own.normalise, settings)


def resolved(settings: CollectionSettings, model: OpenModel) -> CollectionSettings:
    """The settings with everything that the model decides filled in.

    Raises: ValueError if the model draws clips, a step to record does not exist, or the pipeline takes no text length.
    """
    if "num_frames" in model.keywords:
        raise ValueError(f"{settings.model} draws clips; relation classifiers are trained on maps of pictures")
    if settings.source == "shapes":
        from attnsteer.world.steering import STEERED, STEPS

        return replace(settings, num_inference_steps=STEPS, record=STEERED)
    if settings.text_length is not None and "max_sequence_length" not in model.keywords:
        raise ValueError(f"{type(model.pipe).__name__} takes no max_sequence_length; leave the text length out")
    default = model.keywords["num_inference_steps"].default
    steps = settings.num_inference_steps or int(model.source.defaults.get("steps", default))
    record = tuple(sorted({round(share * steps) for share in FRACTIONS}))
    record = settings.record if settings.record is not None else record
    if not record or not 0 <= min(record) <= max(record) < steps:
        raise ValueError(f"steps to record must be in [0, {steps - 1}] for {steps} steps, got {list(record)}")
    scale = settings.guidance_scale
    if scale is None and settings.source == "samples":
        scale = model.source.defaults.get("guidance_scale")
    side = settings.image_size or _own_side(model)
    return replace(settings, num_inference_steps=steps, record=record, image_size=side, guidance_scale=scale)


def load_picture(path: Path, side: int, *, squash: bool) -> torch.Tensor:
    """A picture file as (3, side, side) in [0, 1]: squashed to a square, or the centre cut out.

    Raises: OSError if the file is no picture.
    """
    import numpy as np
    import torch
    from PIL import Image

    with Image.open(path) as file:
        picture = file.convert("RGB")
    shorter = min(picture.size)
    left, top = (picture.width - shorter) // 2, (picture.height - shorter) // 2
    box = (0, 0, *picture.size) if squash else (left, top, left + shorter, top + shorter)
    small = picture.resize((side, side), Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).permute(2, 0, 1)


def revision_of(pipe: Any) -> str | None:
    """The commit of the Hub repository that a pipeline was loaded from, where its text encoder knows it."""
    for part in pipe.components.values():
        found = getattr(getattr(part, "config", None), "_commit_hash", None)
        if isinstance(found, str):
            return found
    return None


def _own_side(model: OpenModel) -> int:
    cells = getattr(model.pipe, "default_sample_size", None) or model.denoiser.config.sample_size
    return int(cells) * int(model.pipe.vae_scale_factor)


def _method(name: str) -> Any:
    from attnsteer.steering.data.ddim import DDIMInversion
    from attnsteer.steering.data.pictures import Noising
    from attnsteer.steering.data.rf import RFInversion

    return {"noise": Noising, "ddim": DDIMInversion, "rf": RFInversion}[name]()


def _seed(seed: int, items: Items) -> int:
    """A seed that depends on the items alone, not on the shard or the process."""
    text = f"{seed}:" + ",".join(str(item["id"]) for item in items)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
