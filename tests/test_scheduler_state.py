"""What steering must know of a scheduler, by closed forms: which latents it goes on from, and which step it is."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from torch import nn

from attnsteer.families import FAMILIES
from attnsteer.pipeline.schedule import Window
from attnsteer.steering.latents import LatentSteering
from attnsteer.steering.scheduler_state import (
    carry_change,
    check_step,
    finishes_earlier_step,
    known_step,
    step_of,
)

# diffusers' own schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

UNET = FAMILIES["UNet2DConditionModel"]


def integrated(scheduler, x, model_output, moves, steps=6):
    """Integrate with a model whose output is given; `moves` maps a step to what steering adds to the latents there.

    The denoiser call is played by `LatentSteering.before`. Returns the last sample, and the steps that were steered.
    """
    scheduler.set_timesteps(steps)
    total, steered, scale = len(scheduler.timesteps), [], 1.0

    def move(arguments, index, rows, region):
        steered.append(index)
        return arguments["sample"] + moves.get(index, 0.0) * scale

    capture = SimpleNamespace(family=UNET, rows=lambda _: slice(0, 1))
    steering = LatentSteering(scheduler, capture, Window(), move, lambda: total)
    for index, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        scale = float((seen * x).sum() / x.square().sum())
        replaced = steering.before(nn.Identity(), (), {"sample": torch.cat([seen, seen]), "timestep": t})
        sample = x if replaced is None else replaced[1]["sample"][:1]
        x = steering.step(scheduler.step, model_output(index, sample), t, x, return_dict=False)[0]
    return x, steered


def alpha(scheduler, index):
    """Signal level ahead of a step; that of the data behind the last one."""
    steps = scheduler.timesteps
    return scheduler.alphas_cumprod[int(steps[index])].sqrt() if index < len(steps) else torch.tensor(1.0)


EPS = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
DELTA = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(1))
START = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("step", [0, 2, 5])
def test_ddim_goes_on_from_the_moved_latents(step):
    """With constant noise the ODE is linear: a move d at step k arrives as d / alpha_k."""
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    plain, _ = integrated(scheduler, START, lambda i, x: EPS, {})
    moved, _ = integrated(scheduler, START, lambda i, x: EPS, {step: DELTA})
    torch.testing.assert_close(moved - plain, DELTA / alpha(scheduler, step), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler, FlowMatchEulerDiscreteScheduler,
     FlowMatchHeunDiscreteScheduler],
)  # fmt: skip
def test_in_sigma_space_moves_arrive_undiminished(make):
    """With a constant derivative dx/dsigma a move arrives as it is; trial points of second-order methods are left."""
    scheduler = make()
    start = START * float(getattr(scheduler, "init_noise_sigma", 1.0))
    plain, steered = integrated(scheduler, start, lambda i, x: EPS, {})
    second_order = make in (HeunDiscreteScheduler, KDPM2DiscreteScheduler, FlowMatchHeunDiscreteScheduler)
    assert steered == ([0, 2, 4, 6, 8, 10] if second_order else [0, 1, 2, 3, 4, 5])
    for step in steered:
        moved, _ = integrated(scheduler, start, lambda i, x: EPS, {step: DELTA})
        torch.testing.assert_close(moved - plain, DELTA, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("make", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_with_given_data_predictions_moves_shrink_with_the_noise(make, order, flow):
    """With given data predictions x is linear: a move d at step k arrives at step k + 1 as d sigma_k+1 / sigma_k."""
    options = {"use_flow_sigmas": True, "flow_shift": 3.0} if flow else {}
    scheduler = make(solver_order=order, prediction_type="sample", lower_order_final=True, **options)
    data = torch.randn(6, 1, 4, 5, 5, generator=torch.Generator().manual_seed(3))

    def sigma(index):
        return scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])[1]

    for step in (0, 1, 2, 4):
        after = []
        for moves in ({}, {step: DELTA}):
            scheduler.set_timesteps(6)
            seen = []

            def output(index, x, seen=seen):
                seen.append(x)
                return data[index]

            integrated(scheduler, START, output, moves)
            after.append(seen)
        expected = DELTA * sigma(step + 1) / sigma(step)
        torch.testing.assert_close(after[1][step + 1] - after[0][step + 1], expected, rtol=1e-3, atol=1e-4)


def test_unipc_without_its_corrector_needs_no_help():
    scheduler = UniPCMultistepScheduler(disable_corrector=[1])
    scheduler.set_timesteps(6)
    scheduler.last_sample, scheduler._step_index = START, 2
    carry_change(scheduler, DELTA)
    assert scheduler.last_sample is START
    scheduler._step_index = 3
    carry_change(scheduler, DELTA)
    assert not torch.equal(scheduler.last_sample, START)


@pytest.mark.parametrize("skip_prk_steps", [True, False])
def test_pndm_leaves_its_trial_points_alone(skip_prk_steps):
    """Constant noise, steered at every step in turn: nothing is lost, because trial points are not steered."""
    scheduler = PNDMScheduler(skip_prk_steps=skip_prk_steps, set_alpha_to_one=True)
    plain, steered = integrated(scheduler, START, lambda i, x: EPS, {})
    assert steered[:3] == ([0, 2, 3] if skip_prk_steps else [0, 4, 8])
    for step in steered:
        moved, _ = integrated(scheduler, START, lambda i, x: EPS, {step: DELTA})
        torch.testing.assert_close(moved - plain, DELTA / alpha(scheduler, step), rtol=1e-3, atol=1e-3)


def test_single_step_dpm_solver_is_steered_where_its_groups_begin():
    scheduler = DPMSolverSinglestepScheduler(solver_order=2, final_sigmas_type="sigma_min", prediction_type="sample")
    data = torch.randn(1, 4, 5, 5)
    plain, steered = integrated(scheduler, START, lambda i, x: data, {})
    first = [index for index, order in enumerate(scheduler.order_list) if order == 1]
    assert steered == first and 0 in first and len(first) < 6
    for step in steered:
        moved, _ = integrated(scheduler, START, lambda i, x: data, {step: DELTA})
        sigmas = [scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[i])[1] for i in (step, 6)]
        torch.testing.assert_close(moved - plain, DELTA * sigmas[1] / sigmas[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [EulerAncestralDiscreteScheduler, LCMScheduler])
def test_stochastic_schedulers_step_from_the_moved_latents(make):
    """The same as handing the stock scheduler the moved sample, with the same noise."""
    ours, stock = make(), make()
    start = START * float(ours.init_noise_sigma)
    torch.manual_seed(5)
    result, _ = integrated(ours, start, lambda i, x: EPS, {1: DELTA, 3: -DELTA})
    torch.manual_seed(5)
    stock.set_timesteps(6)
    x = start
    for index, t in enumerate(stock.timesteps):
        stock.scale_model_input(x, t)
        x = x + {1: DELTA, 3: -DELTA}.get(index, 0.0)
        x = stock.step(EPS, t, x, return_dict=False)[0]
    torch.testing.assert_close(result, x, rtol=1e-4, atol=1e-3)


def test_a_scheduler_with_a_memory_of_its_own_is_an_error():
    scheduler = SASolverScheduler()
    with pytest.raises(ValueError, match="goes on from latents it remembers \\(last_sample\\).*use DDIM"):
        integrated(scheduler, START, lambda i, x: EPS, {1: DELTA})


@pytest.mark.parametrize(
    "make",
    [DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler],
)
def test_steps_are_found_by_their_timestep(make):
    scheduler = make()
    scheduler.set_timesteps(7)
    for index, t in enumerate(scheduler.timesteps):
        assert step_of(scheduler, t, index) == index
        assert step_of(scheduler, t.float().expand(3), index) == index
        assert step_of(scheduler, (t.float() / 1000).bfloat16().expand(2), index) == index
    per_token = torch.stack([torch.zeros(5), scheduler.timesteps[2].float().expand(5)])  # a clean first frame
    assert step_of(scheduler, per_token, 2) == 2
    with pytest.raises(ValueError, match="none of the timesteps"):
        step_of(scheduler, 5000.0, 1)


def test_schedulers_that_count_are_believed_whatever_the_denoiser_gets():
    """Lumina's denoiser gets 1 - t, latent upscaling a logarithm, Cosmos sigma / (sigma + 1)."""
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    assert step_of(scheduler, 5000.0) == 0
    scheduler.set_begin_index(2)
    assert step_of(scheduler, 5000.0) == 2
    for index in (2, 3):
        scheduler.step(EPS, scheduler.timesteps[index], START)
        assert step_of(scheduler, 5000.0, index) == index + 1
    stateless = DDIMScheduler()
    stateless.set_timesteps(4)
    assert known_step(stateless, 5000.0, 0) is None and known_step(stateless, None, 0) is None
    with pytest.raises(ValueError, match="does not count its steps either"):
        step_of(stateless, 5000.0)


def test_another_step_than_the_one_that_was_judged_is_an_error():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    for timestep in (scheduler.timesteps[2], float(scheduler.timesteps[2]), None, torch.zeros(5)):
        check_step(scheduler, timestep, 2)  # several numbers, as of frames of their own, are not compared
    check_step(scheduler, 5000.0, None)
    with pytest.raises(ValueError, match="took the denoiser's call for step 2"):
        check_step(scheduler, scheduler.timesteps[1], 2)


def test_stateless_schedulers_finish_nothing():
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    assert not any(finishes_earlier_step(scheduler, index) for index in range(4))
