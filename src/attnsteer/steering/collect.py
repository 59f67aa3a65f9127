"""Maps with known relations: from given pictures under noise, and from a model's own pictures.

The label is always what the picture shows. The prompt may say something else: with dual prompts, one true and one with
a wrong relation and the same label, a classifier cannot profit from reading the relation word out of the maps. On the
model's own samples word and picture are unrelated to begin with, as far as the model ignores the word.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnsteer.conditioning import Conditioning, captured, text_inputs, with_prompt
from attnsteer.families import family_of
from attnsteer.inject import fresh
from attnsteer.install import before_denoiser_call, uncompiled, wrap_scheduler_step
from attnsteer.pipeline import denoisers_of
from attnsteer.steering.latents import rows_of
from attnsteer.steering.locate import text_rows_of
from attnsteer.steering.noise import log_snr_of
from attnsteer.steering.recording import Recording
from attnsteer.steering.relations import Relation, Span
from attnsteer.steering.scheduler_state import step_of
from attnsteer.steering.shards import MapBatch

Labels = Callable[[Float[Tensor, "batch 3 height width"]], Sequence["str | None"]]


@dataclass(frozen=True)
class PairPrompt:
    """A prompt that names two objects.

    Attributes:
        prompt: The text.
        subject: Phrase of the first object, as it stands in the prompt.
        object: Phrase of the second object.
        word: The relation that the prompt states; None if it states none.
        source: Identifies the picture; training and validation are split by it.
    """

    prompt: str
    subject: str
    object: str
    word: str | None
    source: str

    @property
    def spans(self) -> tuple[Span, Span]:
        """Where the two phrases stand in the prompt."""
        found = Relation.of(self.prompt, self.subject, self.word or "near", self.object)
        return found.subject, found.object


@dataclass
class _Scene:
    """A pipeline made ready for a batch of prompts: its denoiser's arguments and the text rows of the phrases."""

    pipe: Any
    denoiser: nn.Module
    capture: Conditioning
    tokens: list[dict[Span, list[int]]]
    pairs: list[tuple[int, Span, Span]]


def _scene(pipe: Any, prompts: Sequence[PairPrompt], call: Mapping[str, Any]) -> _Scene:
    denoisers = [getattr(pipe, name) for name in denoisers_of(pipe)]
    family = family_of(uncompiled(denoisers[0]))
    whole = {**call, "prompt": [p.prompt for p in prompts]}
    contrast = text_inputs(family, captured(pipe, denoisers, with_prompt(whole, "")))
    capture = Conditioning(family, contrast, lambda: captured(pipe, denoisers, whole))
    tokens, per_prompt = text_rows_of(pipe, capture, whole["prompt"], [p.spans for p in prompts])
    if per_prompt != 1:
        raise ValueError("collecting maps needs num_images_per_prompt=1")
    return _Scene(pipe, denoisers[0], capture, tokens, [(row, *p.spans) for row, p in enumerate(prompts)])


def noised_maps(
    pipe: Any,
    pictures: Float[Tensor, "batch 3 height width"],
    prompts: Sequence[PairPrompt],
    labels: Sequence[str],
    recording: Recording,
    relations: Sequence[str],
    *,
    steps: Sequence[int],
    num_inference_steps: int,
    generator: torch.Generator,
) -> MapBatch:
    """Maps of given pictures at some noise levels: one denoiser call per level, no inversion.

    The published inversion of FLUX cancels to exactly this (its network output drops out); for Stable Diffusion it
    replaces 250 calls by one.

    Args:
        pipe: A stock pipeline whose denoiser works on its autoencoder's latents as they are.
        pictures: In [0, 1].
        prompts: One per picture; the same picture may come several times with different prompts.
        labels: The relation that holds in each picture.
        recording: Which maps.
        relations: Vocabulary; labels and prompted words are stored as indices into it.
        steps: Step indices at which to record.
        num_inference_steps: Steps these indices count in.
        generator: Draws the noise, on the CPU.

    Raises: ValueError if numbers do not fit, a step or label does not exist, or the denoiser does not work on the
        autoencoder's latents.
    """
    height, width = pictures.shape[2:]
    call = {"num_inference_steps": num_inference_steps, "guidance_scale": 1.0, "height": height, "width": width}
    if not len(prompts) == len(labels) == len(pictures):
        raise ValueError(f"got {len(pictures)} pictures, {len(prompts)} prompts and {len(labels)} labels")
    scene = _scene(pipe, prompts, call)
    family, arguments = scene.capture.family, scene.capture.positive
    latents = _encoded(pipe, pictures)
    if arguments[family.latents].shape != latents.shape:
        raise ValueError(
            f"the denoiser works on {tuple(arguments[family.latents].shape)}, the autoencoder gives "
            f"{tuple(latents.shape)}: pictures cannot be noised for {type(pipe).__name__} yet"
        )
    batches = []
    for step in steps:
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        noisy, timestep = _noised(pipe.scheduler, latents, noise, step, num_inference_steps)
        given = timestep.to(arguments["timestep"]).expand(arguments["timestep"].shape)
        inputs = {**fresh(arguments), family.latents: noisy, "timestep": given}
        with torch.no_grad():
            maps = recording.pair_maps(scene.denoiser, inputs, scene.tokens, scene.pairs)
        batches.append(_batch(maps, labels, prompts, relations, step, log_snr_of(pipe.scheduler, float(timestep))))
    return joined(batches)


def sampled_maps(
    pipe: Any,
    prompts: Sequence[PairPrompt],
    label: Labels,
    recording: Recording,
    relations: Sequence[str],
    *,
    steps: Sequence[int],
    call: Mapping[str, Any],
) -> MapBatch:
    """Maps of the model's own sampling runs, labelled by what a detector sees in the finished pictures.

    Args:
        pipe: A stock pipeline.
        prompts: One picture each.
        label: Detector: pictures in [0, 1] -> the relation of subject to object, or None where it cannot be told
            (an object missing, no clear relation); such runs are dropped.
        recording: Which maps.
        relations: Vocabulary.
        steps: Step indices at which to record.
        call: Further keywords of the pipeline call (steps, guidance scale, generators).

    Raises: ValueError if a step or label does not exist, or the number of labels does not fit.
    """
    scene = _scene(pipe, prompts, call)
    recorder = _SampleRecorder(scene, recording, frozenset(steps))
    with (
        wrap_scheduler_step(pipe.scheduler, recorder.advance),
        before_denoiser_call(scene.denoiser, recorder.record),
    ):
        pictures = pipe(**call, prompt=[p.prompt for p in prompts], output_type="pt").images
    if missed := sorted(set(steps) - {step for step, *_ in recorder.recorded}):
        raise ValueError(f"no denoiser call for the prompts in steps {missed}: the run had {recorder.step} steps")
    seen = label(pictures)
    if len(seen) != len(prompts):
        raise ValueError(f"the detector gave {len(seen)} labels for {len(prompts)} pictures")
    kept = [row for row, relation in enumerate(seen) if relation is not None]
    labels = [relation for relation in seen if relation is not None]
    chosen = [prompts[row] for row in kept]
    return joined([_batch(maps[kept], labels, chosen, relations, step, snr) for step, snr, maps in recorder.recorded])


class _SampleRecorder:
    """Records maps at the first conditional denoiser call of chosen steps of a pipeline run."""

    def __init__(self, scene: _Scene, recording: Recording, steps: frozenset[int]) -> None:
        self.scene, self.recording, self.steps = scene, recording, steps
        self.step = 0
        self.recorded: list[tuple[int, float, Tensor]] = []

    def record(self, module: nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        """Ahead of a denoiser call."""
        if self.step not in self.steps or (self.recorded and self.recorded[-1][0] == self.step):
            return
        scene, scheduler = self.scene, self.scene.pipe.scheduler
        rows = scene.capture.rows(arguments)
        if rows is None:
            return
        inputs = rows_of(scene.capture.family, arguments, rows)
        timestep = scheduler.timesteps[step_of(scheduler, inputs["timestep"], self.step)]
        with torch.no_grad():
            maps = self.recording.pair_maps(scene.denoiser, inputs, scene.tokens, scene.pairs)
        self.recorded.append((self.step, log_snr_of(scheduler, float(timestep)), maps))

    def advance(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of `scheduler.step`."""
        self.step += 1
        return step(*args, **kwargs)


def joined(batches: Sequence[MapBatch]) -> MapBatch:
    """Several batches as one."""
    fields = ("maps", "label", "prompt_relation", "timestep", "log_snr")
    merged = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in fields}
    return MapBatch(**merged, source=[source for batch in batches for source in batch.source])


def _noised(scheduler: Any, latents: Tensor, noise: Tensor, step: int, steps: int) -> tuple[Tensor, Tensor]:
    """The denoiser's input at a step of a run that arrives at these latents, and the step's timestep.

    Works on a copy of the scheduler, as some keep track of where they are.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps)
    if not 0 <= step < len(scheduler.timesteps):
        raise ValueError(f"there is no step {step}: {type(scheduler).__name__} takes {len(scheduler.timesteps)}")
    timestep = scheduler.timesteps[step]
    each = timestep.expand(len(latents))
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(latents, each, noise), timestep
    return scheduler.scale_model_input(scheduler.add_noise(latents, noise, each), timestep), timestep


def _encoded(pipe: Any, pictures: Tensor) -> Tensor:
    """Latents of pictures, scaled as the denoiser wants them."""
    with torch.no_grad():
        latents: Tensor = pipe.vae.encode((2 * pictures - 1).to(pipe.vae.device, pipe.vae.dtype)).latent_dist.mode()
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    return (latents - shift) * pipe.vae.config.scaling_factor


def _batch(
    maps: Tensor, labels: Sequence[str], prompts: Sequence[PairPrompt], relations: Sequence[str], step: int,
    log_snr: float,
) -> MapBatch:  # fmt: skip
    index = {name: number for number, name in enumerate(relations)}
    if unknown := sorted(set(labels) - set(index)):
        raise ValueError(f"labels {unknown} are not among the relations {list(relations)}")
    count = len(labels)
    return MapBatch(
        maps=maps.half(),
        label=torch.tensor([index[name] for name in labels], dtype=torch.int64),
        prompt_relation=torch.tensor([index.get(p.word or "", -1) for p in prompts], dtype=torch.int64),
        timestep=torch.full((count,), step, dtype=torch.int64),
        log_snr=torch.full((count,), log_snr),
        source=[p.source for p in prompts],
    )
