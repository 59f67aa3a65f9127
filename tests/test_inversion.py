"""Inversion of pictures into a stock pipeline's noise, against loops written out by hand."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from attnsteer.install import record_maps
from attnsteer.steering.collect import PairPrompt
from attnsteer.steering.data.ddim import DDIMInversion
from attnsteer.steering.data.pictures import Noising, Pictured, PicturePlan, picture_maps, psnr, recovered
from attnsteer.steering.data.rf import RFInversion
from attnsteer.steering.recording import Recording
from steered import calls_of, places, pointed

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

RELATIONS = ("above", "below")
PROMPTS = [PairPrompt("a red circle above a dog", "red circle", "dog", "above", "one"),
           PairPrompt("a red circle below a dog", "red circle", "dog", "below", "one")]  # fmt: skip


def picture(side=16, rows=1):
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(5)).repeat(2, 1, 1, 1)


def collected(pipe, method, steps=(1, 3), count=4, side=16, call=None, recording=None):
    plan = PicturePlan(recording or Recording(size=4), RELATIONS, steps, count, method, call or {})
    given = Pictured(picture(side), PROMPTS, ["above", "above"])
    return picture_maps(pipe, given, plan, torch.Generator().manual_seed(1))


def diffusion(kind):
    pipe = pointed("sd")
    pipe.unet.conv_out.weight.mul_(0.1)  # random weights are no contraction by themselves
    pipe.scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=kind)
    return pipe


def inverted_by_hand(pipe, latents, text, count, iterations):
    """Latents at each step of the reconstruction, and at its end; float64 arithmetic around the stock U-Net."""
    powers, stride = pipe.scheduler.alphas_cumprod.double(), 1000 // count
    times = [stride * i + 1 for i in range(count)]

    def clean_and_noise(z, t):
        with torch.no_grad():
            out = pipe.unet(z.float(), t, encoder_hidden_states=text).sample.double()
        a, b = powers[t].sqrt(), (1 - powers[t]).sqrt()
        kind = pipe.scheduler.config.prediction_type
        if kind == "epsilon":
            return (z - b * out) / a, out
        if kind == "v_prediction":
            return a * z - b * out, a * out + b * z
        return out, (z - a * out) / b

    z = latents.double()
    for t in times:
        before = powers[t - stride] if t > stride else powers[0]
        goal, z_t = z, z
        for _ in range(iterations):
            noise = clean_and_noise(z_t, t)[1]
            clean = (goal - (1 - before).sqrt() * noise) / before.sqrt()  # what the step would have to start from
            z_t = powers[t].sqrt() * clean + (1 - powers[t]).sqrt() * noise
        z = z_t
    seen = []
    for t in reversed(times):
        seen.append(z)
        before = powers[t - stride] if t > stride else powers[0]
        clean, noise = clean_and_noise(z, t)
        z = before.sqrt() * clean + (1 - before).sqrt() * noise
    return seen, z


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddim_inversion_is_the_fixed_point_iteration(kind):
    pipe = diffusion(kind)
    clean = pipe.vae.encode(2 * picture() - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    text = pipe.encode_prompt([p.prompt for p in PROMPTS], "cpu", 1, False)[0]
    expected, end = inverted_by_hand(pipe, clean, text, 4, 3)
    with calls_of(pipe.unet) as calls:
        done = collected(pipe, DDIMInversion(iterations=3, min_psnr=-math.inf))
    calls = calls[-(4 * 3 + 4) :]  # three per step there, one per step back; dry runs come first
    torch.testing.assert_close(calls[0]["sample"], clean)
    for call, latents in zip(calls[12:], expected, strict=True):
        torch.testing.assert_close(call["sample"].double(), latents, rtol=1e-4, atol=1e-4)
    assert [int(call["timestep"].flatten()[0]) for call in calls[12:]] == [751, 501, 251, 1]
    assert done.batch.timestep.tolist() == [1, 1, 3, 3] and done.batch.label.tolist() == [0] * 4
    groups = [places(pipe.tokenizer, PROMPTS[0].prompt, 1, 2), places(pipe.tokenizer, PROMPTS[0].prompt, 5)]
    with torch.no_grad(), record_maps(pipe.unet, groups, size=4) as recorder:
        pipe.unet(expected[1].float(), 501, encoder_hidden_states=text)
    torch.testing.assert_close(done.batch.maps[:2].float(), torch.stack(recorder.maps, dim=1), rtol=2e-3, atol=2e-4)
    assert torch.isfinite(end).all()


def test_more_iterations_bring_the_picture_back():
    pipe = diffusion("epsilon")
    pipe.unet.conv_out.weight.mul_(0.1)
    clean = pipe.vae.encode(2 * picture() - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    errors = []
    for iterations in (1, 4):
        ends = []
        stock = DDIMInversion(iterations=iterations, min_psnr=-math.inf)

        class Kept:
            min_psnr = -math.inf

            def walk(self, *args, stock=stock, ends=ends):
                ends.append(stock.walk(*args))
                return ends[0]

        collected(pipe, Kept(), steps=(1,), count=4)
        errors.append((ends[0] - clean).abs().max().item())
    assert errors[1] < 1e-3 and errors[1] < 0.2 * errors[0]


def mixes(calls, clean, noise):
    """Share of noise in the latents of each call, and the largest residual."""
    found = []
    for call in calls:
        z = call["hidden_states"]
        share = ((z - clean) * (noise - clean)).sum() / (noise - clean).square().sum()
        found.append((float(share), float((z - clean - share * (noise - clean)).abs().max())))
    return found


def flux(side=16, **options):
    pipe = pointed("flux")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**options)
    latents = pipe.vae.encode(2 * picture(side) - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    return pipe, pipe._pack_latents(latents, *latents.shape)


SHORT = {"max_sequence_length": 12}


def test_published_rf_inversion_mixes_picture_and_noise():
    """Shares measured in the released pipeline with a random network: FLUX.1-schnell, steps 1 and 3 of 4."""
    pipe, clean = flux()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    with calls_of(pipe.transformer) as calls:
        done = collected(pipe, RFInversion(min_psnr=-math.inf), call=SHORT)
    found = mixes(calls[-2:], clean, noise)
    assert [share for share, _ in found] == pytest.approx([0.665, 0.222], abs=6e-4)
    assert max(residual for _, residual in found) < 1e-5
    assert [float(call["timestep"][0]) for call in calls[-2:]] == [0.75, 0.25]
    assert len(done.batch) == 4 and done.dropped == 0


def test_published_rf_inversion_of_the_longer_schedule():
    """FLUX.1-dev at 512 px (1,024 tokens): steps 5, 10, 15, 20, 25, 49 of 50."""
    pipe, clean = flux(128, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    assert clean.shape[1] == 1024
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    with calls_of(pipe.transformer) as calls:
        collected(pipe, RFInversion(), (5, 10, 15, 20, 25, 49), 50, 128, SHORT)
    found = mixes(calls[-6:], clean, noise)
    assert [share for share, _ in found] == pytest.approx([0.944, 0.882, 0.814, 0.738, 0.652, 0.037], abs=6e-4)
    assert max(residual for _, residual in found) < 1e-4


def test_rf_inversion_with_the_network_is_the_controlled_equation():
    pipe, clean = flux()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    method = RFInversion(gamma=0.4, eta=0.7, start=0.0, stop=0.5, min_psnr=-math.inf)
    with calls_of(pipe.transformer) as calls:
        collected(pipe, method, call=SHORT)
    own = [call for call in calls if call["hidden_states"].shape == clean.shape][-8:]

    def velocity(z, sigma):
        call = {**own[0], "hidden_states": z.float(), "timestep": torch.full((2,), sigma)}
        with torch.no_grad():
            return pipe.transformer(**call)[0].double()

    z = clean.double()
    for i, sigma in enumerate((0.0, 0.25, 0.5, 0.75)):
        torch.testing.assert_close(own[i]["hidden_states"].double(), z, rtol=1e-4, atol=1e-4)
        v = velocity(z, sigma)
        z = z + 0.25 * (v + 0.4 * ((noise - z) / (1 - i / 5) - v))
    for i, sigma in enumerate((1.0, 0.75, 0.5, 0.25)):
        torch.testing.assert_close(own[4 + i]["hidden_states"].double(), z, rtol=1e-4, atol=1e-4)
        v, eta = -velocity(z, sigma), 0.7 if i < 2 else 0.0
        z = z + 0.25 * (v + eta * ((clean - z) / sigma - v))


def test_plain_flow_comes_back_as_steps_grow_finer():
    pipe, clean = flux()
    errors = []
    for count in (4, 32):
        ends = []

        class Kept:
            min_psnr = -math.inf

            def walk(self, *args, ends=ends):
                ends.append(RFInversion(gamma=0.0, eta=0.0).walk(*args))
                return ends[0]

        collected(pipe, Kept(), count=count, call=SHORT)
        errors.append((ends[0] - clean).abs().max().item())
    assert errors[1] < errors[0] / 4  # Euler's error falls with the step


def test_noising_of_packed_latents():
    pipe, clean = flux()
    draw = torch.Generator().manual_seed(1)
    with calls_of(pipe.transformer) as calls:
        done = collected(pipe, Noising(), call={**SHORT, "guidance_scale": 3.5})
    for call, sigma in zip(calls[-2:], (0.75, 0.25), strict=True):
        noise = torch.randn(clean.shape, generator=draw)
        torch.testing.assert_close(call["hidden_states"], (1 - sigma) * clean + sigma * noise)
        assert call["timestep"].tolist() == [sigma] * 2
    assert done.batch.log_snr.tolist() == pytest.approx([2 * math.log(1 / 3)] * 2 + [2 * math.log(3)] * 2, rel=1e-5)
    assert done.text_length == 12
    assert [name for name, _, _ in done.channel_layers] == [
        "transformer_blocks.0.attn", "single_transformer_blocks.0.attn", "single_transformer_blocks.1.attn",
    ]  # fmt: skip


def test_pictures_that_do_not_come_back_are_dropped_with_their_later_prompts():
    assert recovered(["a", "a", "b", "b", "c"], [30, 10, 10, 30, 30], 20) == [0, 4]
    assert recovered(["a", "a"], [math.nan, 30], 20) == []
    pipe = diffusion("epsilon")
    done = collected(pipe, DDIMInversion(min_psnr=99.0))
    assert len(done.batch) == 0 and done.dropped == 2
    channels = sum(count for _, count, _ in done.channel_layers)
    assert done.batch.maps.shape == (0, 2, channels, 4, 4) and channels > 0
    black, grey = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)
    assert psnr(black, grey).tolist() == pytest.approx([20.0], abs=1e-4)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: collected(pointed("flux"), DDIMInversion(), call=SHORT), "use the method rf"),
        (lambda: collected(pointed("sd"), RFInversion()), "use the method ddim or noise"),
        (lambda: collected(pointed("sd"), DDIMInversion(), steps=(4,)), "there is no step 4"),
        (lambda: DDIMInversion(iterations=0), "iterations must be >= 1"),
        (lambda: RFInversion(eta=1.5), r"eta must be in \[0, 1\]"),
        (lambda: RFInversion(start=0.8, stop=0.2), "start <= stop"),
        (lambda: Pictured(picture(), PROMPTS, ["above"]), "2 pictures, 2 prompts and 1 labels"),
        (
            lambda: collected(pointed("flux"), RFInversion(), call=SHORT, recording=Recording(size=4, text_length=16)),
            "softmax over 16 text tokens, this call has 12: pass max_sequence_length=16",
        ),
    ],
)
def test_requests_that_cannot_be_met_are_errors(action, message):
    with pytest.raises(ValueError, match=message):
        action()
