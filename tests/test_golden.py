"""The published implementations' outputs, repeated through the public low-level API."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from attnsteer import NAG, guide_denoiser, record_maps

FOLDER = Path(__file__).parent / "golden"
TOLERANCE = 2e-5


def load(name: str) -> tuple[dict[str, Any], torch.nn.Module, dict[str, Any], dict[str, Any]]:
    case = torch.load(FOLDER / name, weights_only=True)
    model = getattr(diffusers, case["cls"])(**case["config"]).eval().requires_grad_(False)
    model.load_state_dict(case["state_dict"])
    inputs = dict(case["inputs"])
    keywords = {"encoder_hidden_states": inputs.pop("positive")}
    negative = {"encoder_hidden_states": inputs.pop("negative", None)}
    if "pooled" in inputs:
        keywords["pooled_projections"] = inputs.pop("pooled")
    if "txt_ids" in inputs:
        negative["txt_ids"] = inputs["txt_ids"]
    return case, model, {**inputs, **keywords}, negative


@pytest.mark.parametrize(("name", "norm"), [("unet_sd.pt", 1), ("wan_t2v.pt", 1), ("flux.pt", 2)])
def test_nag_equals_the_published_code(name, norm):
    case, model, call, negative = load(name)
    with torch.no_grad():
        plain = model(**call, return_dict=False)[0]
        with guide_denoiser(model, NAG(**case["nag"], norm=norm), negative=negative):
            guided = model(**call, return_dict=False)[0]
        again = model(**call, return_dict=False)[0]
    assert torch.equal(plain, again)
    torch.testing.assert_close(plain, case["without_guidance"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(guided, case["expected"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["unet_sd.pt", "wan_t2v.pt"])
def test_only_the_conditional_half_of_a_cfg_batch_is_guided(name):
    case, model, call, negative = load(name)
    latents = "sample" if "sample" in call else "hidden_states"
    batch = call[latents].shape[0]
    other = torch.randn(call["encoder_hidden_states"].shape, generator=torch.Generator().manual_seed(1))
    both = {**call, latents: torch.cat([call[latents]] * 2)}
    both["encoder_hidden_states"] = torch.cat([other, call["encoder_hidden_states"]])
    if call["timestep"].ndim:
        both["timestep"] = torch.cat([call["timestep"]] * 2)
    with torch.no_grad():
        unconditional = model(**{**call, "encoder_hidden_states": other}, return_dict=False)[0]
        with guide_denoiser(model, NAG(**case["nag"]), negative=negative, rows=slice(batch, 2 * batch)):
            guided = model(**both, return_dict=False)[0]
    torch.testing.assert_close(guided[:batch], unconditional, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(guided[batch:], case["expected"], atol=TOLERANCE, rtol=0)


def test_maps_and_their_gradient_equal_the_published_code():
    case, model, call, _ = load("l2s_maps_flux.pt")
    latents = call.pop("hidden_states").clone().requires_grad_(True)
    groups = {name: [int(i) for i in name.split(",")] for name in case["expected"]}
    with record_maps(model, list(groups.values())) as recorder:
        model(hidden_states=latents, **call)
    for maps, expected in zip(recorder.maps, case["expected"].values(), strict=True):
        torch.testing.assert_close(maps[0], expected, atol=TOLERANCE, rtol=0)
    ramp = torch.linspace(0, 1, recorder.maps[0].numel()).view_as(recorder.maps[0])
    (gradient,) = torch.autograd.grad((recorder.maps[0] * ramp).sum(), latents)
    torch.testing.assert_close(gradient, case["expected_grad_of_ramp_weighted_map_2"], atol=TOLERANCE, rtol=0)
