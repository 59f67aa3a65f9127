"""`guide` on stock pipelines of the families beyond those of `test_guide_pipeline`."""

import functools

import pytest
import torch

from attnsteer import NAG, guide
from tiny.families import FAMILY_PIPELINES, build_family
from tiny.state import fingerprint

PROMPT, NEGATIVE = "a red circle to the left of a dog", "blurry cartoon cat"
RULE = NAG(scale=6.0, tau=2.0, alpha=0.6)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported:UserWarning"),
]
NAMES = pytest.mark.parametrize("name", sorted(FAMILY_PIPELINES))
CFG = pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])


@functools.cache
def pipeline(name):
    return build_family(name)


def generate(pipe, name, cfg, prompt=PROMPT, **options):
    _, call, switched_on = FAMILY_PIPELINES[name]
    keywords = {**call, **(switched_on if cfg else {}), **options}
    out = pipe(prompt=prompt, generator=torch.Generator().manual_seed(3), return_dict=False, **keywords)[0]
    return torch.stack(list(out)) if isinstance(out, list) else out


@NAMES
@CFG
def test_the_negative_prompt_guides_and_leaves_nothing_behind(name, cfg):
    pipe = pipeline(name)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    plain = generate(pipe, name, cfg)
    before = fingerprint(denoiser)
    guided = guide(pipe, RULE, validate=True)
    result = generate(guided, name, cfg, nag_negative_prompt=NEGATIVE)
    assert (result - plain).abs().max() > 1e-4 * plain.abs().max()
    assert fingerprint(denoiser) == before
    assert torch.equal(generate(pipe, name, cfg), plain)


@NAMES
def test_the_prompt_as_its_own_negative_changes_nothing(name):
    pipe = pipeline(name)
    plain = generate(pipe, name, True)
    result = generate(guide(pipe, RULE), name, True, nag_negative_prompt=PROMPT)
    torch.testing.assert_close(result, plain, atol=float(1e-5 * plain.abs().max()), rtol=0)


# The stock pipelines differ: CogView4 pads to the longest prompt without a mask, Fill and img2img encode the picture
# with the first generator, VACE takes one prompt.
ONE_BY_ONE = sorted(set(FAMILY_PIPELINES) - {"CogView4", "FLUX.1 Fill", "FLUX.1 img2img", "Wan VACE"})


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_batch_equals_its_prompts_one_by_one(name):
    pipe = pipeline(name)
    guided = guide(pipe, RULE)
    call = FAMILY_PIPELINES[name][1]
    prompts, negatives = [PROMPT, "a blue bear"], [NEGATIVE, "a photo of a green triangle"]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    out = guided(prompt=prompts, generator=generators, nag_negative_prompt=negatives, return_dict=False, **call)[0]
    together = torch.stack(list(out)) if isinstance(out, list) else out
    for row in (0, 1):
        alone = guided(
            prompt=prompts[row],
            generator=torch.Generator().manual_seed(row + 1),
            nag_negative_prompt=negatives[row],
            return_dict=False,
            **call,
        )[0]
        alone = torch.stack(list(alone)) if isinstance(alone, list) else alone
        torch.testing.assert_close(together[row : row + 1], alone, atol=float(1e-4 * alone.abs().max()), rtol=0)
