"""The published regime in stock pipelines, against a computation written out step by step."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from attnsteer import guide
from attnsteer.families import family_of
from attnsteer.install import record_maps
from attnsteer.seam.layers import text_layers
from attnsteer.steering import published_schedules
from attnsteer.steering.descent import PublishedRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.recording import Recording
from published_network import RELATIONS, logits_of, random_checkpoint
from steered import PROMPT, calls_of, denoiser_of, generate, latents_seen, places, pointed

TARGET = RELATIONS.index("to the left of")


@pytest.fixture(autouse=True)
def short_texts(monkeypatch):
    """Tiny pipelines read 20 (T5) or 24 (CLIP) tokens instead of 512 or 77."""
    schedules = published_schedules.PUBLISHED_SCHEDULES
    short = {name: replace(s, text_length=20 if s.text_length == 512 else 24) for name, s in schedules.items()}
    monkeypatch.setattr(published_schedules, "PUBLISHED_SCHEDULES", short)


ROUNDS, STEP_SIZE, LOSS_TARGETS = 16, 5.0, (1e-5, 3e-5, 5e-5, 7e-5)


def saved(tmp_path, stem, gain=1.0, **options):
    """A checkpoint of the published format with random weights, under an official name."""
    checkpoint = random_checkpoint(**options)
    # as large as trained weights on maps that are divided by their sum, so that the gradients are worth comparing
    checkpoint["model_state_dict"]["object_extractor.input_projection.weight"] *= gain
    torch.save(checkpoint, tmp_path / f"{stem}.pth")
    return checkpoint, tmp_path / f"{stem}.pth"


def channels_of(denoiser):
    return sum(layer.module.heads for layer in text_layers(denoiser, family_of(denoiser)))


def maps_by_hand(denoiser, arguments, groups, size, normalise):
    """(2, channels, size, size): every layer's own maps, by ascending resolution, resized and normalised by hand."""
    layers = text_layers(denoiser, family_of(denoiser))
    with ExitStack() as stack:
        recorders = [stack.enter_context(record_maps(denoiser, groups, layers=[layer.index])) for layer in layers]
        denoiser(**arguments)
    objects = []
    for which in range(2):
        maps = [recorder.maps[which] for recorder in recorders]
        maps = sorted(maps, key=lambda m: m.shape[-1])  # a stable sort: execution order within a resolution
        if maps[0].shape[-1] != size or maps[-1].shape[-1] != size:
            maps = [F.interpolate(m, size=(size, size), mode="bilinear", align_corners=False) for m in maps]
        maps = torch.cat(maps, dim=1)
        objects.append(maps / (maps.sum(dim=(2, 3), keepdim=True) + 1e-8) if normalise else maps)
    return torch.stack(objects, dim=1)


def steered_by_hand(denoiser, arguments, groups, checkpoint, index, size, normalise, loss_target):
    """The published loop on one prompt: raw gradient of the cross entropy, sixteen times."""
    key = family_of(denoiser).latents
    z, losses = arguments[key].clone(), []
    for _ in range(ROUNDS):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            maps = maps_by_hand(denoiser, {**arguments, key: z}, groups, size, normalise)
            loss = -logits_of(checkpoint, maps, torch.tensor([[index]])).log_softmax(dim=1)[0, TARGET]
        losses.append(loss.item())
        if loss.item() <= loss_target:
            break
        z = z - STEP_SIZE * torch.autograd.grad(loss, z)[0]
    return z.detach(), losses


def test_flux_schnell_steers_its_first_step(tmp_path):
    """Four steps, the first one steered; maps neither resized nor normalised; then the stock pipeline."""
    pipe = pointed("flux")
    denoiser = pipe.transformer
    checkpoint, path = saved(tmp_path, "flux_schnell", map_size=4, orig_map_size=4, table=channels_of(denoiser))
    method = LearnedSteering.from_published(path)
    assert method.rule == PublishedRule(STEP_SIZE, LOSS_TARGETS, ROUNDS)
    assert method.recording == Recording(size=4, text_length=20, side=4) and (method.start, method.end) == (0.0, 0.25)
    call = {"num_inference_steps": 4, "max_sequence_length": 20, "guidance_scale": 0.0}
    with calls_of(denoiser) as calls:
        plain = generate(pipe, "flux", **call)
    groups = [places(pipe.tokenizer_2, PROMPT, 1, 2), places(pipe.tokenizer_2, PROMPT, 8)]
    moved, losses = steered_by_hand(denoiser, calls[0], groups, checkpoint, 1, 4, False, LOSS_TARGETS[0])
    assert losses[-1] < losses[0]
    expected = generate(pipe, "flux", latents=moved, **call)
    guided = guide(pipe, method)
    result = generate(guided, "flux", **call)
    effect = (expected - plain).abs().max().item()
    assert effect > 0.01 * plain.abs().max()
    torch.testing.assert_close(result, expected, rtol=0.0, atol=0.01 * effect)
    (step,) = guided.steering_report.steps
    assert (step.step_index, step.iterations) == (0, ROUNDS)
    assert step.before[0] == pytest.approx(torch.tensor(-losses[0]).exp().item(), rel=1e-3)
    assert step.after[0] == pytest.approx(torch.tensor(-losses[-1]).exp().item(), rel=1e-3)


@pytest.mark.parametrize(("stem", "step_size"), [("sd2", 5.0), ("sd14", 7.5)])
def test_stable_diffusion_steers_the_first_half_under_cfg(tmp_path, stem, step_size, monkeypatch):
    """DDIM and CFG written out; maps by ascending resolution, resized and divided by their sum."""
    monkeypatch.setattr("test_published_steering.STEP_SIZE", step_size)
    pipe = pointed("sd")
    unet, size, scale = pipe.unet, 6, 7.5
    checkpoint, path = saved(tmp_path, stem, gain=40.0, map_size=size, table=channels_of(unet))
    method = LearnedSteering.from_published(path)
    assert method.rule.step_size == step_size and (method.start, method.end) == (0.0, 0.5)
    assert method.recording == Recording(size=size, normalise=True, text_length=24)
    call = {"num_inference_steps": 4, "guidance_scale": scale}
    cond, uncond = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    groups = [places(pipe.tokenizer, PROMPT, 1, 2), places(pipe.tokenizer, PROMPT, 8)]
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(4)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    trained = (1, 1, 3, 3)  # with 4 steps and a classifier trained at 1, 3 and 6
    for index, t in enumerate(scheduler.timesteps):
        if index < 2:
            arguments = {"sample": x, "timestep": t, "encoder_hidden_states": cond}
            target = LOSS_TARGETS[index]
            x, losses = steered_by_hand(unet, arguments, groups, checkpoint, trained[index], size, True, target)
            assert losses[-1] < losses[0]
        with torch.no_grad():
            first, second = (unet(x, t, encoder_hidden_states=text).sample for text in (uncond, cond))
        x = scheduler.step(first + scale * (second - first), t, x, return_dict=False)[0]
    guided = guide(pipe, method)
    result = generate(guided, "sd", **call)
    assert [step.step_index for step in guided.steering_report.steps] == [0, 1]
    plain = generate(pipe, "sd", **call)
    effect = (x - plain).abs().max().item()
    assert effect > 0.01 * plain.abs().max()
    torch.testing.assert_close(result, x, rtol=0.0, atol=0.01 * effect)


def test_relations_outside_the_published_vocabulary_can_be_skipped(tmp_path):
    _, path = saved(tmp_path, "sd2", map_size=4, table=40)
    call = {"prompt": "a dog near a cat"}
    with pytest.raises(ValueError, match="cannot judge \\['near'\\]"):
        LearnedSteering.from_published(path).prepare(call)
    method = LearnedSteering.from_published(path, unknown="skip", stop_at_first=True)
    assert not method.applies(method.prepare(call)) and method.rule.stop_at_first


def test_a_file_of_another_name_is_an_error(tmp_path):
    _, path = saved(tmp_path, "mine")
    with pytest.raises(ValueError, match="no published schedule is called 'mine'; name .* schedule=.*: flux_schnell"):
        LearnedSteering.from_published(path)
    method = LearnedSteering.from_published(path, schedule="sd14")
    assert method.rule.step_size == 7.5 and (method.start, method.end) == (0.0, 0.5)


def test_a_checkpoint_of_another_model_is_an_error(tmp_path):
    """All files say 1368 channels; Stable Diffusion 1.4 has 128 and 2.1 has 195, which would otherwise take these."""
    pipe = pointed("sd")
    _, path = saved(tmp_path, "sd2", map_size=4, table=200)
    guided = guide(pipe, LearnedSteering.from_published(path))
    count = channels_of(pipe.unet)
    with pytest.raises(ValueError, match=f"reads 195 map channels, got {count}; .*stable-diffusion-2-1-base"):
        generate(guided, "sd", num_inference_steps=4)


def test_flux_dev_takes_turns_with_two_relations(tmp_path):
    """Half of the steps; maps resized and divided by their sum; iteration k works on relation k modulo 2."""
    pipe = pointed("flux")
    denoiser, prompt = pipe.transformer, "a dog above a cat and to the left of a bird"
    checkpoint, path = saved(tmp_path, "flux_dev", gain=40.0, map_size=6, orig_map_size=4, table=channels_of(denoiser))
    call = {"num_inference_steps": 2, "max_sequence_length": 20, "prompt": prompt}
    with calls_of(denoiser) as calls:
        plain = generate(pipe, "flux", **call)
    dog, cat, bird = (places(pipe.tokenizer_2, prompt, word) for word in (1, 4, 11))
    asked = [([dog, cat], RELATIONS.index("above")), ([dog, bird], RELATIONS.index("to the left of"))]
    z = calls[0]["hidden_states"].clone()
    for iteration in range(ROUNDS):
        groups, wanted = asked[iteration % 2]
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            maps = maps_by_hand(denoiser, {**calls[0], "hidden_states": z}, groups, 6, True)
            loss = -logits_of(checkpoint, maps, torch.tensor([[1]])).log_softmax(dim=1)[0, wanted]
        assert loss.item() > LOSS_TARGETS[0]
        z = z - STEP_SIZE * torch.autograd.grad(loss, z)[0]
    expected = generate(pipe, "flux", latents=z.detach(), **call)
    guided = guide(pipe, LearnedSteering.from_published(path))
    result = generate(guided, "flux", **call)
    effect = (expected - plain).abs().max().item()
    assert effect > 0.01 * plain.abs().max()
    torch.testing.assert_close(result, expected, rtol=0.0, atol=0.01 * effect)
    (step,) = guided.steering_report.steps
    assert (step.step_index, step.iterations) == (0, ROUNDS)


def test_the_maps_of_the_recording_are_those_recorded_by_hand():
    """Order of channels: ascending resolution, then execution, then head; in the official sizes and in others."""
    for name, size, normalise in (("sd", 6, True), ("flux", 4, False), ("flux", 6, True)):
        pipe = pointed(name)
        denoiser = denoiser_of(pipe)
        with calls_of(denoiser) as calls:
            generate(pipe, name, num_inference_steps=1)
        (subject, other), pair = ([2, 3], [6]), ["subject", "object"]
        with torch.no_grad():
            expected = maps_by_hand(denoiser, dict(calls[0]), [subject, other], size, normalise)
            tokens = [dict(zip(pair, (subject, other), strict=True))]
            maps = Recording(size=size, normalise=normalise).pair_maps(denoiser, dict(calls[0]), tokens, [(0, *pair)])
        torch.testing.assert_close(maps, expected)


def test_only_the_pipelines_own_first_call_sees_the_moved_latents(tmp_path):
    """The noise prediction that the scheduler gets is that of the moved latents."""
    pipe = pointed("flux")
    _, path = saved(tmp_path, "flux_schnell", map_size=4, orig_map_size=4, table=channels_of(pipe.transformer))
    call = {"num_inference_steps": 4, "max_sequence_length": 20}
    with latents_seen(pipe.transformer) as seen:
        result = generate(guide(pipe, LearnedSteering.from_published(path)), "flux", **call)
    assert len(seen) == 4
    torch.testing.assert_close(generate(pipe, "flux", latents=seen[0], **call), result)


def test_another_text_length_than_the_checkpoints_is_an_error(tmp_path):
    """The maps are a softmax over all text tokens, padding included: with fewer of them they are other maps."""
    pipe = pointed("flux")
    _, path = saved(tmp_path, "flux_schnell", map_size=4, table=channels_of(pipe.transformer))
    guided = guide(pipe, LearnedSteering.from_published(path))
    with pytest.raises(ValueError, match="softmax over 20 text tokens, this call has 12: pass max_sequence_length=20"):
        generate(guided, "flux", num_inference_steps=4, max_sequence_length=12)


def test_another_picture_size_than_the_checkpoints_is_an_error(tmp_path):
    """The file says how many cells its maps had: the published pictures have 16 pixels to a cell."""
    pipe = pointed("flux")
    _, path = saved(tmp_path, "flux_schnell", map_size=4, orig_map_size=4, table=channels_of(pipe.transformer))
    guided = guide(pipe, LearnedSteering.from_published(path))
    call = {"num_inference_steps": 4, "max_sequence_length": 20}
    with pytest.raises(ValueError, match=r"had 4x4 cells, this call's have 64 in all: .* \(0\.5 times those"):
        generate(guided, "flux", height=32, width=32, **call)
    generate(guided, "flux", height=16, width=16, **call)
    assert guided.steering_report.rows == (0,)
    plain = "a dog and a cat"  # nothing is read, so nothing is asked of the size
    expected = generate(pipe, "flux", prompt=plain, height=32, width=32, **call)
    assert torch.equal(generate(guided, "flux", prompt=plain, height=32, width=32, **call), expected)
    assert LearnedSteering.from_published(saved(tmp_path, "sd2", orig_map_size=64)[1]).recording.side is None
