"""Distilling the embedded U-Net: the target is where one DDIM step must land, and runs go on where they stopped."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from attnsteer.world.distil import Distillation, Student, collect, distil, implied_picture, student_scheduler
from attnsteer.world.train import Training, train
from attnsteer.world.unet import UNetRecipe, UNetSize

pytestmark = pytest.mark.filterwarnings("ignore:There are modules", "ignore:__array__ implementation")
SETTINGS = Distillation(steps=2, substeps=2, shards=1, batch=4, iterations=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train(folder, Training(batch=2, iterations=1, text_iterations=1), UNetRecipe(UNetSize(16, (8, 8, 16), 2)))
    return folder / "model"


def test_one_ddim_step_with_the_implied_picture_lands_on_the_target(teacher):
    scheduler = student_scheduler(StableDiffusionPipeline.from_pretrained(teacher).scheduler)
    scheduler.set_timesteps(4)
    ends = [*scheduler.timesteps[1:], None]
    state, target = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    for here, there in zip(scheduler.timesteps, ends, strict=True):
        alphas = [
            (scheduler.final_alpha_cumprod if t is None else scheduler.alphas_cumprod[t]).double().view(1)
            for t in (here, there)
        ]
        picture = implied_picture(state, target, *alphas)
        landed = scheduler.step(picture, here, state).prev_sample
        assert torch.allclose(landed, target, atol=1e-5)


def test_trajectories_begin_with_noise_and_end_with_the_teachers_picture(teacher, tmp_path: Path):
    from safetensors.torch import load_file

    pipe = StableDiffusionPipeline.from_pretrained(teacher)
    pipe.set_progress_bar_config(disable=True)
    (path,) = collect(pipe, tmp_path, SETTINGS)
    states = load_file(path)["states"].float()
    assert states.shape == (4, 3, 3, 16, 16)
    noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(states[:, 0], noise, atol=2e-3)
    assert states[:, -1].abs().max() <= 1.01  # thresholded by the teacher
    written = path.stat().st_mtime_ns
    collect(pipe, tmp_path, SETTINGS)
    assert path.stat().st_mtime_ns == written


def test_a_distillation_resumes_to_the_same_weights(teacher, tmp_path: Path):
    whole = distil(teacher, tmp_path / "whole", SETTINGS)
    assert StableDiffusionPipeline.from_pretrained(whole).scheduler.config.thresholding is False
    pipe = StableDiffusionPipeline.from_pretrained(teacher)
    pipe.set_progress_bar_config(disable=True)
    schedule = pipe.scheduler
    parts = tmp_path / "parts"
    shards = collect(pipe, parts / "trajectories", SETTINGS)
    pipe.scheduler = schedule
    first = Student(pipe, shards, parts, SETTINGS)
    first.step()
    first.save()
    distil(teacher, parts, SETTINGS)
    states = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts")]
    assert states[0]["iteration"] == states[1]["iteration"] == 3
    for name, value in states[0]["average"].items():
        assert torch.equal(value, states[1]["average"][name]), name
    assert json.loads((parts / "log.jsonl").read_text().splitlines()[-1])["iteration"] == 3
    with pytest.raises(ValueError, match="other settings"):
        distil(teacher, parts, Distillation(steps=2, substeps=2, shards=1, batch=4, iterations=4))
