"""What the tests of steering share: places of words, tiny pipelines with pointed attention, simple objectives."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from attnsteer.changes import Hook, applied
from attnsteer.families import family_of
from attnsteer.seam.layers import text_layers
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize
from attnsteer.steering.dataset import Manifest
from attnsteer.steering.descent import Descent, LeanRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.objectives import CentroidObjective, Verdict
from attnsteer.steering.recording import Recording
from attnsteer.steering.train import default_classifier
from attnsteer.texts.inject import named_arguments
from tiny import CALLS, build

PROMPT = "a red circle to the left of a dog"
CFG_ON = {
    "sd": {"guidance_scale": 5.0},
    "sdxl": {"guidance_scale": 5.0},
    "sd3": {"guidance_scale": 5.0},
    "flux": {"true_cfg_scale": 3.0, "negative_prompt": "blurry"},
    "wan": {"guidance_scale": 5.0},
    "wan_two_experts": {"guidance_scale": 5.0},
    "wan_i2v": {"guidance_scale": 5.0},
}
CFG_OFF = {name: {} if name == "flux" else {"guidance_scale": 1.0} for name in CFG_ON}
FAMILIES = ("sd", "sdxl", "sd3", "flux", "wan", "wan_i2v")
RELATIONS = ("to the left of", "to the right of", "above", "below")
RULE = LeanRule(iterations=4, step_size=0.05, probability=0.999)


def centroid(**settings):
    """Steering by the hand-made loss, which tiny random models can be steered by."""
    return LearnedSteering(CentroidObjective(), **{"rule": RULE, "recording": Recording(size=8), **settings})


def differs(first, second):
    """Whether two results differ by more than rounding."""
    return (first - second).abs().max() > 1e-3 * second.abs().max()


def places(tokenizer, prompt, first, count=1):
    """Rows of `count` words from word number `first`, by tokenising every word alone; CLIP begins with a special one.

    An independent count: no offsets, no decoding.
    """
    lengths = [len(tokenizer(word, add_special_tokens=False).input_ids) for word in prompt.split()]
    begin = sum(lengths[:first]) + (tokenizer.bos_token is not None)
    return list(range(begin, begin + sum(lengths[first : first + count])))


def pointed(name, seed=0):
    """A tiny pipeline whose attention is not nearly even, so that its maps tell something."""
    pipe = build(name, seed)
    if name.startswith("wan"):
        for key in ("transformer", "transformer_2"):
            for block in getattr(getattr(pipe, key, None), "blocks", ()):
                block.attn2.norm_q.weight.mul_(20.0)
    return pipe


def denoiser_of(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def generate(pipe, name, prompt=PROMPT, seed=3, **options):
    """Latents of a call with a seed; `generator` may be given instead."""
    call = {**CALLS[name], **CFG_OFF[name], "generator": torch.Generator().manual_seed(seed), **options}
    return pipe(prompt=prompt, return_dict=False, **call)[0]


@contextmanager
def calls_of(module):
    """Collects the arguments of a module's calls by name, as its caller gives them."""
    seen = []

    def keep(module, args, kwargs):
        seen.append(named_arguments(module, args, kwargs))

    with applied([Hook(module, "before", keep)]):
        yield seen


@contextmanager
def latents_seen(denoiser):
    """Collects the latents that reach the denoiser's first layer in the pipeline's own calls, steered or not."""
    entry = next(
        getattr(denoiser, name)
        for name in ("conv_in", "x_embedder", "pos_embed", "patch_embedding")
        if hasattr(denoiser, name)
    )
    seen = []

    def keep(module, args, kwargs):
        if not torch.is_grad_enabled():  # the calls that judge the latents need gradients
            seen.append(args[0].clone())

    with applied([Hook(entry, "before", keep)]):
        yield seen


@dataclass
class Spy:
    """An objective that keeps what it is asked, and wants every map dark in its left half."""

    known: tuple = ("to the left of", "to the right of", "above", "below")
    asked: list = field(default_factory=list)

    @property
    def relations(self):
        return self.known

    def __call__(self, maps, timestep, relations):
        self.asked.append((tuple(maps.shape), float(timestep), tuple(relations)))
        loss = maps[..., : maps.shape[-1] // 2].mean(dim=(1, 2, 3, 4))
        return Verdict(loss, torch.zeros_like(loss))


@dataclass(frozen=True)
class Nudge:
    """A rule that adds a fixed pattern to the denoiser's input, whatever the objective says."""

    size: float = 0.1

    def pattern(self, like):
        return self.size * torch.randn(like.shape, generator=torch.Generator().manual_seed(11)).to(like)

    def __call__(self, judge, latents, step_index):
        certain = torch.zeros(len(latents))
        return Descent(latents + self.pattern(latents), 0, certain, certain)


def small_classifier(channels, conditioning="log_snr", seed=0, **settings):
    """A random classifier of four relations."""
    size = EncoderSize(width=8, layers=1, heads=2, feedforward=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = RelationClassifier(
            ClassifierSettings(
                RELATIONS, channels, map_size=4, extractor=size, pooling_heads=2, head=size, conditioning=conditioning,
                **settings,
            )
        )  # fmt: skip
    return classifier.eval()


def save_classifier(pipe, folder):
    """Save a random classifier, such as training makes, for all layers of a pipeline's U-Net."""
    channels = sum(layer.module.heads for layer in text_layers(pipe.unet, family_of(pipe.unet)))
    torch.manual_seed(0)
    RelationClassifier(default_classifier(Manifest("tiny", RELATIONS, channels, 4))).save_pretrained(folder)
