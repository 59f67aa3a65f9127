"""Distilling the embedded models: the target is where one DDIM step must land, and runs go on where they stopped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from attnsteer.world.calls import call_keywords
from attnsteer.world.distil import Distillation, Student, collect, distil
from attnsteer.world.landing import FluxLanding, implied_picture, student_scheduler
from attnsteer.world.measure import load_pipeline
from attnsteer.world.mmdit import MMDiTRecipe, MMDiTSize
from attnsteer.world.train import Training, train
from attnsteer.world.unet import UNetRecipe, UNetSize

pytestmark = pytest.mark.filterwarnings(
    "ignore:There are modules", "ignore:__array__ implementation", "ignore:Mismatch dtype"
)
SETTINGS = Distillation(steps=2, substeps=2, shards=1, batch=4, iterations=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train(folder, Training(batch=2, iterations=1, text_iterations=1), UNetRecipe(UNetSize(16, (8, 8, 16), 2)))
    return folder / "model"


def test_one_ddim_step_with_the_implied_picture_lands_on_the_target(teacher):
    scheduler = student_scheduler(StableDiffusionPipeline.from_pretrained(teacher).scheduler.config)
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


@pytest.fixture(scope="module")
def flux_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux-teacher")
    size = MMDiTSize(picture=16, heads=2, head_dim=16, double_blocks=1, single_blocks=1, rope=(4, 6, 6))
    train(folder, Training(batch=2, iterations=1, text_iterations=1), MMDiTRecipe(size))
    return folder / "model"


def test_the_flux_students_levels_are_those_of_its_pipeline_and_among_the_teachers(flux_teacher):
    landing = FluxLanding(load_pipeline(flux_teacher))
    landing.prepare_student(2)
    levels = {}
    for steps in (2, 6):
        pipe = load_pipeline(flux_teacher)
        pipe(["a circle"], output_type="latent", **call_keywords(pipe, 1, steps, 1.0))
        levels[steps] = pipe.scheduler.sigmas
    assert torch.allclose(landing.sigmas, levels[2])
    assert torch.allclose(landing.sigmas, levels[6][::3])


def test_a_flux_student_learns_the_velocity_that_lands_on_the_teachers_states(flux_teacher, tmp_path: Path):
    pipe = load_pipeline(flux_teacher)
    shards = collect(pipe, tmp_path / "trajectories", SETTINGS)
    student = Student(load_pipeline(flux_teacher), shards, tmp_path, SETTINGS)
    assert student.states.shape == (4, 3, 64, 12)
    scheduler, landing = student.pipe.scheduler, student.landing
    states, targets = student.states[:, 0].float(), student.states[:, 1].float()
    velocity = (targets - states) / (landing.sigmas[1] - landing.sigmas[0])
    landed = scheduler.step(velocity, scheduler.timesteps[0], states, return_dict=False)[0]
    assert torch.allclose(landed, targets, atol=1e-4)
    landing.denoiser.forward = lambda **inputs: (velocity,)
    zeros = torch.zeros(4, dtype=torch.long)
    assert landing.loss(states, targets, zeros, zeros + 1, student.ids).item() == pytest.approx(0.0, abs=1e-9)
    moved = landing.loss(states, targets + 1.0, zeros, zeros + 1, student.ids).item()
    assert moved == pytest.approx(float((landing.sigmas[1] - landing.sigmas[0]) ** -2), rel=1e-3)


def test_a_flux_distillation_exports_a_pipeline(flux_teacher, tmp_path: Path):
    folder = distil(flux_teacher, tmp_path, SETTINGS)
    pipe = load_pipeline(folder)
    assert pipe(["a circle"], output_type="pt", **call_keywords(pipe, 1, 2, 1.0)).images.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("architecture", ["unet", "mmdit"])
def test_a_consistent_student_learns_the_end_of_the_trajectory_from_every_state(
    architecture, teacher, flux_teacher, tmp_path: Path
):
    folder = teacher if architecture == "unet" else flux_teacher
    settings = replace(SETTINGS, consistent=True)
    shards = collect(load_pipeline(folder), tmp_path / "trajectories", settings)
    student = Student(load_pipeline(folder), shards, tmp_path, settings)
    landing, asked = student.landing, []
    landing.loss = lambda states, targets, steps, ends, ids: (
        asked.append((states, targets, steps)) or next(landing.denoiser.parameters()).sum()
    )
    for _ in range(4):
        student.step()
    for states, targets, steps in asked:
        rows = [(student.states[:, step].float() == state).flatten(1).all(1).nonzero().item()
                for state, step in zip(states, steps.tolist(), strict=True)]  # fmt: skip
        assert torch.equal(targets, student.states[rows, -1].float())
    assert {step for _, _, steps in asked for step in steps.tolist()} == {0, 1}


@pytest.mark.parametrize("architecture", ["unet", "mmdit"])
def test_a_consistent_student_is_sampled_with_noise_added_again(architecture, teacher, flux_teacher, tmp_path: Path):
    folder = distil(teacher if architecture == "unet" else flux_teacher, tmp_path, replace(SETTINGS, consistent=True))
    pipe = load_pipeline(folder)
    assert type(pipe.scheduler).__name__ == ("LCMScheduler" if architecture == "unet" else "FlowMatchLCMScheduler")
    for steps in (1, 2):
        made = pipe(["a circle"], output_type="pt", **call_keywords(pipe, 1, steps, 1.0)).images
        assert made.shape == (1, 3, 16, 16) and len(pipe.scheduler.timesteps) == steps
