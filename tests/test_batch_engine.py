"""The fallback engine: a doubled batch, without any knowledge of the denoiser's class."""

import pytest
import torch

from attnsteer import NAG, families, guide
from tiny import CALLS, build
from tiny.state import fingerprint

PROMPT, NEGATIVE = "a red circle to the left of a dog", "blurry cartoon cat"
RULE = NAG(scale=6.0, tau=2.0, alpha=0.6)
CFG = {
    "sd": {"guidance_scale": 5.0},
    "sdxl": {"guidance_scale": 5.0},
    "sd3": {"guidance_scale": 5.0},
    "flux": {"true_cfg_scale": 3.0, "negative_prompt": "low quality"},
    "wan": {"guidance_scale": 5.0},
}
OFF = {name: {} if name == "flux" else {"guidance_scale": 1.0} for name in CFG}
NAMES = pytest.mark.parametrize("name", sorted(CFG))


def generate(pipe, name, seed=3, **options):
    call = {**CALLS[name], **OFF[name], **options}
    return pipe(prompt=PROMPT, generator=torch.Generator().manual_seed(seed), return_dict=False, **call)[0]


@NAMES
@pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])
def test_equals_the_engine_with_rows(name, cfg):
    pipe = build(name)
    options = CFG[name] if cfg else {}
    plain = generate(pipe, name, **options)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    before = fingerprint(denoiser)
    expected = generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE, **options)
    result = generate(guide(pipe, RULE, engine="batch"), name, nag_negative_prompt=NEGATIVE, **options)
    assert (result - plain).abs().max() > 1e-3 * plain.abs().max()
    torch.testing.assert_close(result, expected, atol=float(1e-4 * plain.abs().max()), rtol=0)
    assert fingerprint(denoiser) == before
    assert torch.equal(generate(pipe, name, **options), plain)


def test_works_for_a_class_without_a_row(monkeypatch):
    pipe = build("sd3")
    expected = generate(guide(pipe, RULE), "sd3", nag_negative_prompt=NEGATIVE)
    without = {name: row for name, row in families.FAMILIES.items() if name != "SD3Transformer2DModel"}
    monkeypatch.setattr(families, "FAMILIES", without)
    result = generate(guide(pipe, RULE, engine="batch"), "sd3", nag_negative_prompt=NEGATIVE)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    assert "batch-doubled" in str(guide(pipe, RULE, engine="batch").explain(PROMPT))


def test_windows_and_settings_that_change_nothing():
    pipe = build("sd")
    guided = guide(pipe, RULE, engine="batch")
    plain = generate(pipe, "sd", num_inference_steps=4)
    half = generate(guided, "sd", nag_negative_prompt=NEGATIVE, nag_end=0.5, num_inference_steps=4)
    expected = generate(guide(pipe, RULE), "sd", nag_negative_prompt=NEGATIVE, nag_end=0.5, num_inference_steps=4)
    torch.testing.assert_close(half, expected, atol=1e-4, rtol=1e-4)
    off = generate(guided, "sd", nag_negative_prompt=NEGATIVE, nag_scale=1.0, num_inference_steps=4)
    assert torch.equal(off, plain)


def test_what_it_cannot_do_is_an_error():
    pipe = build("sd")
    with pytest.raises(ValueError, match="knows no presets"):
        guide(pipe, NAG(), engine="batch")
    with pytest.raises(ValueError, match="leave out steering"):
        guide(pipe, engine="batch")
    with pytest.raises(ValueError, match="knows no layers"):
        guide(pipe, NAG(5.0, 2.5, 0.25, layers=[0]), engine="batch")
    with pytest.raises(ValueError, match="'rows' or 'batch'"):
        guide(pipe, RULE, engine="double")
