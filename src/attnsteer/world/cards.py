"""What the cards of the embedded models say, apart from the measured figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attnsteer.world.blocks import SCALE
from attnsteer.world.captions import WRONG
from attnsteer.world.clips import FLICKERING, FRAMES, SIDE, STILL, TWO_OBJECTS
from attnsteer.world.models import VIDEO_MODEL
from attnsteer.world.scene import ATTRIBUTES, COLOURS, SHAPES
from attnsteer.world.text import MAX_TOKENS

_HEAD: Final = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: {task}
---
"""
_MEASURED: Final = """
**Measured** by `python -m attnsteer.world.{command}` with prompts and seeds that were used neither for training nor
for choosing a setting (Wilson 95 % intervals{means}). {chosen}

| figure | {value} | interval | count |
|---|---|---|---|
"""
_UNETS_CHOSEN: Final = """The guidance scale was chosen on an earlier model, NAG's scale of 7,
the steered steps and the steering rule's settings on other prompts and seeds, and frozen then. With the preset of
SD1.5, scale 3, colours fell as far, but outlines and blur only to about a third. """


@dataclass(frozen=True)
class ModelCard:
    """The prose of one model's card, in Markdown, and the settings it is best called with.

    Attributes:
        description: One line.
        about: Heading, use, data and training.
        defaults: By the names of `attnsteer.compare.Request`; "extra" holds further keywords of the pipeline's call,
            such as {"max_sequence_length": 32} or {"true_cfg_scale": 2.0}.
        chosen: How the settings were chosen, whole sentences with a space behind them.
        step_counts: Numbers of steps that a few-step model serves; empty for those of `defaults` alone.
        task: The Hub's name for what the model does.
        command: The module of `attnsteer.world` that measures it.
    """

    description: str
    about: str
    defaults: Mapping[str, Any]
    chosen: str = ""
    step_counts: tuple[int, ...] = ()
    task: str = "text-to-image"
    command: str = "measure"


CARDS: Final = {
    "shapes-unet": ModelCard(
        "Coloured shapes at 32 x 32 pixels: a U-Net trained from scratch on a CPU, for StableDiffusionPipeline",
        f"""# shapes-unet

A text-to-image model of the colours {", ".join(COLOURS)} and the shapes {", ".join(SHAPES)},
some of them {" or ".join(ATTRIBUTES)}, on a plain background at 32 x 32 pixels, up to four objects in a picture. It
loads without attnsteer:

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(folder)
image = pipe("a red circle to the left of a blue square", num_inference_steps=20, guidance_scale=1.5).images[0]
```

**Data.** Drawn on the fly by `attnsteer.world.render`, captioned by `attnsteer.world.captions`. Captions name colours
and shapes truly. Relation words between two objects are drawn without a look at the picture, and made wrong on
purpose in {WRONG:.0%} of the cases, so the model knows objects but not relations: the weakness that steering repairs.

**Training.** In three stages, each started from the weights of the one before with
`python -m attnsteer.world.train unet --output RUN --start MODEL`; seeds, settings and losses are in
`training/log-1.jsonl` to `log-3.jsonl`. Stage 1 (6,000 iterations) drew one or two objects at 24 pixels, stage 2
(2,250 of 4,000 planned iterations, ended early) one to four at 32 pixels, stage 3 (1,800) more blurred ones. The
tokenizer was not deterministic during stage 1, and stages 1 and 2 used earlier settings of renderer and captions, so
a repetition starts from stage 3's code and will not agree bit for bit. The autoencoder is set by hand to pass pixels
through; the latents are the picture.
""",
        {"steps": 20, "guidance_scale": 1.5, "width": 32, "height": 32, "nag_scale": 7.0},
        _UNETS_CHOSEN,
    ),
    "shapes-unet-few": ModelCard(
        "The same in one, two or four steps: a student of shapes-unet that needs no guidance",
        """# shapes-unet-few

A student of `shapes-unet` that draws in four, two or one step without classifier-free guidance, as distilled models
do, and for which a negative prompt in attention space is therefore the only one. It loads without attnsteer:

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(folder)
image = pipe("a red circle", num_inference_steps=4, guidance_scale=1.0).images[0]
```

**Training.** `python -m attnsteer.world.distil --model shapes-unet --work RUN`: the teacher drew 1,152 trajectories of
its probability-flow ODE in twelve UniPC steps at guidance scale 1.5. First the student learned to land on every third
state with one DDIM step (progressive distillation, arXiv:2202.00512, with all halvings in one), then, with
`--consistent --start STUDENT`, to land on the end of the trajectory from each of these states (consistency models,
arXiv:2303.01469). `LCMScheduler` samples it (arXiv:2310.04378): after each step but the last, noise is added again.
Settings and losses are in `training/log-1.jsonl` and `log-2.jsonl`. Text encoder and autoencoder are the teacher's.
""",
        {"steps": 4, "guidance_scale": 1.0, "width": 32, "height": 32, "nag_scale": 7.0},
        _UNETS_CHOSEN,
        step_counts=(1, 2, 4),
    ),
    "shapes-mmdit": ModelCard(
        "Coloured shapes at 32 x 32 pixels: double- and single-stream blocks, flow matching, for FluxPipeline",
        f"""# shapes-mmdit

A text-to-image model of the same world as `shapes-unet`, built as FLUX is: a FluxTransformer2DModel with two
double-stream and five single-stream blocks, rotary positions, a pooled and a sequence text encoder, and flow matching.
It loads without attnsteer:

```python
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained(folder)
image = pipe(
    "a red circle above a blue square",
    negative_prompt="",
    true_cfg_scale=1.5,
    num_inference_steps=20,
    height=32,
    width=32,
    max_sequence_length=32,
).images[0]
```

**Data.** Drawn on the fly by `attnsteer.world.render`, captioned by `attnsteer.world.captions`. Captions name colours
and shapes truly. Relation words between two objects are drawn without a look at the picture, and made wrong on
purpose in {WRONG:.0%} of the cases, so the model knows objects but not relations: the weakness that steering repairs.

**Training.** From random weights with `python -m attnsteer.world.train mmdit --optimizer muon` (Muon for the matrices,
AdamW for the rest): 2,400 iterations at 16 pixels, then 2,600 at 32 pixels with `--start`; 95 minutes of a busy CPU
core together. Seeds, settings and losses are in `training/log-1.jsonl` and `log-2.jsonl`. The autoencoder is set by
hand to pass pixels through.

**Steering.** The relation classifier in `steering/` is smaller than that of `shapes-unet`. It was trained by
`python -m attnsteer.world.steering` with `--rendered-shards 28 --sampled-shards 64 --width 40 --presence 0 --dropout 0
--learning-rate 1e-3 --patience 3 --epochs 40 --symmetries swap mirror upend transpose`; losses are in
`training/classifier.log`. It is right less often than that of the U-Net, 77 % at the first steered step and 93 % at
the last, and steers all the same. It is the best of four trainings on the held-out pictures, 87.0 % of all, so that
its figures favour it a little: without transposed maps 80.9 %, and with dropout 0.1, stopped after 24 epochs, 85.4 %
with and 85.9 % without them. A third of the maps had given 78.5 %.
Peaks of its maps do not tell whether an object is there, so attempts are judged by relations alone.
""",
        {
            "steps": 20, "guidance_scale": 1.0, "width": 32, "height": 32, "nag_scale": 5.0,
            "extra": {"max_sequence_length": MAX_TOKENS, "true_cfg_scale": 1.5, "negative_prompt": ""},
        },
        "The guidance scale and the steps were chosen on other prompts and seeds. ",
    ),
    "shapes-mmdit-few": ModelCard(
        "The same in one, two or four steps: a student of shapes-mmdit that needs no guidance",
        """# shapes-mmdit-few

A student of `shapes-mmdit` that draws in four, two or one step without classifier-free guidance, as FLUX.1-schnell
does. It loads without attnsteer:

```python
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained(folder)
image = pipe("a red circle", num_inference_steps=4, height=32, width=32, max_sequence_length=32).images[0]
```

**Training.** `python -m attnsteer.world.distil --model shapes-mmdit --work RUN --consistent`: the teacher drew 1,152
trajectories of its probability-flow ODE in twelve Euler steps at guidance scale 1.5; the student learned to land on
the end of the trajectory from each of four states (consistency models, arXiv:2303.01469), 900 iterations and, with
`--start STUDENT`, 700 more. `FlowMatchLCMScheduler` samples it (arXiv:2310.04378): after each step but the last, noise
is added again. Settings and losses are in `training/log-1.jsonl` and `log-2.jsonl`. Text encoders and autoencoder are
the teacher's.
""",
        {
            "steps": 4, "guidance_scale": 1.0, "width": 32, "height": 32, "nag_scale": 5.0,
            "extra": {"max_sequence_length": MAX_TOKENS},
        },
        "NAG's scale is the preset of FLUX.1-schnell. ",
        step_counts=(1, 2, 4),
    ),
    VIDEO_MODEL: ModelCard(
        "Short clips of coloured shapes that move, stand still or flicker: a Wan transformer, for WanPipeline",
        f"""# shapes-video

A text-to-video model of one or two shapes ({", ".join(SHAPES)}) in the colours {", ".join(COLOURS)}, some of them
{" or ".join(ATTRIBUTES)}, that move left, right, up or down, stand still, or flicker. A clip has {FRAMES} frames of
{SIDE} x {SIDE} pixels, each shown as a block of {SCALE} x {SCALE}. It loads without attnsteer:

```python
from diffusers import WanPipeline

pipe = WanPipeline.from_pretrained(folder)
video = pipe(
    "a red circle moving left",
    height=96,
    width=96,
    num_frames=9,
    num_inference_steps=12,
    guidance_scale=2.0,
    max_sequence_length=32,
).frames[0]
```

Without these sizes the pipeline takes Wan's own, which are far larger than anything the model has seen.

**Data.** Drawn on the fly by `attnsteer.world.clips`, captioned by `attnsteer.world.clip_captions`. {STILL:.0%} of the
objects stand still, {FLICKERING:.0%} flicker, {TWO_OBJECTS:.0%} of the clips show two. Captions are true; what they
leave out (colour, motion, flicker, an attribute) is left to chance, so that a negative prompt has something to
suppress. They name no relations.

**Training.** From random weights with `python -m attnsteer.world.train video`; seed, settings and losses are in
`training/log-1.jsonl`. The autoencoder is set by hand to pack four frames into one latent frame without loss. The
transformer predicts the clip behind the noise, which the UniPC scheduler takes as it is.
""",
        {
            "steps": 12, "guidance_scale": 2.0, "width": SCALE * SIDE, "height": SCALE * SIDE, "frames": FRAMES,
            "nag_scale": 5.0, "extra": {"max_sequence_length": MAX_TOKENS},
        },
        "\nA trait shows if it is seen in any object of a clip. Consistency is the share of frames in which an object"
        " is there and\nlooks as it does in most, as the mean over the objects of a clip. ",
        task="text-to-video",
        command="clip_measure",
    ),
}  # fmt: skip


def card_text(name: str, rows: Sequence[str], remarks: Sequence[str] = (), *, means: bool = False) -> str:
    """The Markdown of a model's card.

    Args:
        name: Of the model.
        rows: Of the table of figures; without any, the card says that nothing was measured yet.
        remarks: What its costs are, a line each.
        means: Whether there are means among the figures.

    Raises: KeyError for a model without a card.
    """
    card = CARDS[name]
    about = f"{_HEAD.format(task=card.task)}{card.about}"
    if not rows:
        return f"{about}\nNot measured yet.\n"
    measured = _MEASURED.format(
        command=card.command, chosen=f"{card.chosen}{'Times are from a busy machine.' if remarks else ''}".rstrip(),
        means=", of means bootstrap" if means else "", value="value" if means else "share",
    )  # fmt: skip
    return "\n".join([f"{about}{measured}" + rows[0], *rows[1:], *(f"\n{line}" for line in remarks)]) + "\n"
