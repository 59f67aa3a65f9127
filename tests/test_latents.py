"""The denoiser calls of one steered step, and the scheduler's step that follows."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import nn

from attnsteer.changes import wrap_scheduler_step
from attnsteer.families import FAMILIES
from attnsteer.pipeline.schedule import Window
from attnsteer.steering.latents import LatentSteering

# diffusers' own schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

UNET = FAMILIES["UNet2DConditionModel"]
EPS, DELTA, START = (torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3))


def one_step(rows, moved=DELTA, end=1.0):
    """A steering of one step, whose calls have the conditional rows that `rows` says, call by call."""
    answers = iter(rows)
    capture = SimpleNamespace(family=UNET, rows=lambda _: next(answers))
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1)
    return LatentSteering(
        scheduler, capture, Window(0.0, end), lambda arguments, *_: arguments["sample"] + moved, lambda: 1
    )


def call(steering, latents):
    replaced = steering.before(nn.Identity(), (), {"sample": latents, "timestep": torch.tensor(1)})
    return latents if replaced is None else replaced[1]["sample"]


def test_further_calls_of_a_step_get_the_steered_latents():
    steering = one_step([slice(0, 1)])
    moved = START + DELTA
    assert torch.equal(call(steering, START), moved)
    assert torch.equal(call(steering, START), moved)
    assert torch.equal(call(steering, torch.cat([START, START])), torch.cat([moved, moved]))
    with pytest.raises(ValueError, match="does not repeat the 1 conditional rows"):
        call(steering, START + 1)


def test_an_unconditional_call_before_the_conditional_one_is_an_error():
    steering = one_step([None, slice(0, 1)])
    assert torch.equal(call(steering, START), START)
    with pytest.raises(ValueError, match="unconditionally before it does so with the prompt in step 0"):
        call(steering, START)


def test_a_steered_step_without_a_conditional_call_is_an_error():
    steering = one_step([None])
    call(steering, START)
    with pytest.raises(ValueError, match="has the prompt's text"):
        steering.step(lambda model_output, timestep, sample: sample, EPS, 1, START)


def test_steps_outside_the_window_are_left_alone():
    steering = one_step([], end=0.5)
    steering.total, steering.step_index = lambda: 4, 2
    assert torch.equal(call(steering, START), START)
    assert steering.step(lambda model_output, timestep, sample: sample, EPS, 1, START) is START
    assert steering.step_index == 3


def test_a_second_step_from_one_call_is_an_error():
    """Cosmos steps twice, from different latents: the moved ones would reach only one of them."""
    steering = one_step([slice(0, 1)])
    call(steering, START)
    stock = DDIMScheduler()
    stock.set_timesteps(1)
    steering.step(stock.step, EPS, stock.timesteps[0], START)
    with pytest.raises(ValueError, match="several scheduler steps from one denoiser call"):
        steering.step(stock.step, EPS, stock.timesteps[0], START)


def test_copies_of_a_scheduler_step_by_themselves():
    """LTX-2 copies its scheduler for sound, SkyReels for each frame; a copy must not step the original."""
    scheduler, seen = EulerDiscreteScheduler(), []

    def watch(step, *args, **kwargs):
        seen.append(args[1])
        return step(*args, **kwargs)

    with wrap_scheduler_step(scheduler, watch):
        copied = copy.deepcopy(scheduler)
        for each in (scheduler, copied):
            each.set_timesteps(3)
        copied.step(EPS, copied.timesteps[0], START)
        assert not seen and copied.step_index == 1 and scheduler.step_index is None
        scheduler.step(EPS, scheduler.timesteps[0], START)
        assert len(seen) == 1 and scheduler.step_index == 1
    assert "step" not in vars(scheduler)


def test_wrappers_of_a_step_can_be_nested():
    """A window of negative guidance counts steps while steering moves them."""
    scheduler, order = EulerDiscreteScheduler(), []
    scheduler.set_timesteps(2)

    def noting(name):
        def wrapper(step, *args, **kwargs):
            order.append(name)
            return step(*args, **kwargs)

        return wrapper

    with wrap_scheduler_step(scheduler, noting("inner")), wrap_scheduler_step(scheduler, noting("outer")):
        scheduler.step(EPS, scheduler.timesteps[0], START)
    assert order == ["outer", "inner"] and scheduler.step_index == 1


def test_a_pipeline_that_steps_by_itself_is_an_error():
    steering = one_step([slice(0, 1)])
    steering.finish()
    call(steering, START)
    with pytest.raises(ValueError, match="without calling the step of its scheduler"):
        steering.finish()


def test_a_scheduler_that_takes_no_sample_is_an_error():
    steering = one_step([slice(0, 1)])
    call(steering, START)
    with pytest.raises(ValueError, match="DDIMScheduler.step takes no sample"):
        steering.step(lambda noise, t: noise, EPS, 1)
