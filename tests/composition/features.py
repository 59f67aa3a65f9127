"""Features of diffusers and PyTorch that change how a denoiser runs, but not what it computes."""

import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from attnsteer import NAG, LearnedSteering, guide
from attnsteer.steering.descent import LeanRule
from attnsteer.steering.objectives import CentroidObjective
from attnsteer.steering.recording import Recording
from composition.checks import NEGATIVE, PROMPT, assert_close, differs, generate, modules_of
from tiny import CALLS
from tiny.state import fingerprint

RULE = NAG(6.0, 2.0, 0.6)
CPU = torch.device("cpu")


def call_of(name, **options):
    """A call without CFG."""
    return {**CALLS[name], **({} if name == "flux" else {"guidance_scale": 1.0}), **options}


def denoiser_of(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def steering(layers=None):
    """Steering that needs no classifier and always finds something to do."""
    rule = LeanRule(iterations=2, step_size=0.05, probability=0.999)
    return LearnedSteering(CentroidObjective(), rule=rule, recording=Recording(layers, size=8))


def guided(pipe, call, rule=RULE, **options):
    return generate(guide(pipe, rule), call, nag_negative_prompt=NEGATIVE, **options)


def backends_of(pipe):
    """The attention backend of every processor of the denoiser, and the one of those without."""
    processors = [getattr(module, "processor", None) for module in denoiser_of(pipe).modules()]
    chosen = [getattr(processor, "_attention_backend", None) for processor in processors]
    return [*map(str, chosen), _AttentionBackendRegistry._active_backend]


def check_feature(pipe, call, enable, reference=None, tolerance=1e-5):
    """With a feature switched on, guidance gives what it gives without, and leaves the featured pipeline as it was.

    Args:
        pipe: A tiny pipeline.
        call: Its call.
        enable: Switches the feature on, in place.
        reference: A pipeline that computes what the feature must; None is `pipe` before the feature was on.
        tolerance: Largest deviation, relative to the largest value.

    Returns: The guided latents.
    """
    other = pipe if reference is None else reference
    expected, expected_steered = guided(other, call), generate(guide(other, steering()), call)
    enable(pipe)
    plain, before = generate(pipe, call), fingerprint(*modules_of(pipe))
    both = guide(pipe, RULE)
    result = generate(both, call, nag_negative_prompt=NEGATIVE)
    assert fingerprint(*modules_of(pipe)) == before
    assert torch.equal(generate(pipe, call), plain)
    assert differs(result, plain)
    assert_close(result, expected, tolerance)
    assert torch.equal(generate(both, call, nag_negative_prompt=PROMPT), plain)
    backends = backends_of(pipe)
    steered = generate(guide(pipe, steering()), call)
    assert backends_of(pipe) == backends
    assert fingerprint(*modules_of(pipe)) == before
    assert torch.equal(generate(pipe, call), plain)
    assert differs(steered, plain)
    assert_close(steered, expected_steered, 10 * tolerance)
    return result
