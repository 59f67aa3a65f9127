"""The way of moved latents back to the scheduler's sample."""

import pytest
import torch

from attnsteer.steering.latents import SteeredInput, pull_back


def test_latents_that_can_move_only_in_part_are_an_error():
    sample = torch.randn(2, 8, 6, 6)
    moved = sample.clone()
    moved[:, :4] += 0.1
    with pytest.raises(ValueError, match="could move only part of latents of shape \\(8, 6, 6\\)"):
        pull_back(sample, SteeredInput(sample, moved, (slice(None), slice(0, 4))))


@pytest.mark.parametrize("scale", [1.0, 0.068, 14.6])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("extra", [0, 5])
def test_pull_back_inverts_scaling_repetition_and_extra_channels(scale, groups, extra):
    sample, delta = torch.randn(2, 4, 6, 6) * 3, torch.randn(2, 4, 6, 6)
    added = torch.randn(2, extra, 6, 6)
    before = torch.cat([torch.cat([scale * sample, added], dim=1)] * groups)
    after = torch.cat([torch.cat([scale * (sample + delta), added], dim=1)] * groups)
    torch.testing.assert_close(pull_back(sample, SteeredInput(before, after)), sample + delta)
    assert torch.equal(pull_back(sample, SteeredInput(before, before.clone())), sample)


def test_pull_back_rounds_no_more_than_the_narrower_type():
    sample = torch.randn(1, 64, 16)
    narrow = sample.bfloat16()
    moved = narrow + torch.randn(1, 64, 16).bfloat16()
    result = pull_back(sample, SteeredInput(narrow, moved))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, sample + (moved.float() - narrow.float()), rtol=4e-3, atol=4e-3)


def test_rows_that_did_not_move_are_bit_equal_after_the_pull_back():
    sample = torch.randn(3, 4, 5, 5) * 14
    before = sample * 0.0681
    after = before.clone()
    after[1] += 0.1
    result = pull_back(sample, SteeredInput(before, after))
    assert torch.equal(result[[0, 2]], sample[[0, 2]]) and not torch.equal(result[1], sample[1])


@pytest.mark.parametrize(
    ("original", "message"),
    [
        (lambda x: x + 0.1, "no multiple"),
        (lambda x: x * torch.linspace(1, 1.1, 6), "no multiple"),
        (lambda x: torch.zeros_like(x), "no multiple"),
        (lambda x: torch.cat([x, 2 * x]), "no multiple"),
        (lambda x: torch.cat([x, x[:1]]), "pull-back of its own"),
        (lambda x: x.flatten(2), "pull-back of its own"),
        (lambda x: x[:, :3], "pull-back of its own"),
    ],
)
def test_inputs_that_are_no_image_of_the_sample_are_errors(original, message):
    sample = torch.randn(2, 4, 6, 6)
    before = original(sample)
    with pytest.raises(ValueError, match=message):
        pull_back(sample, SteeredInput(before, before + 0.1))


def test_moving_what_is_no_latent_is_an_error():
    sample = torch.randn(2, 4, 6, 6)
    before = torch.cat([sample, torch.randn(2, 5, 6, 6)], dim=1)
    with pytest.raises(ValueError, match="not latents"):
        pull_back(sample, SteeredInput(before, before + 0.1))


def test_an_axis_of_one_frame_may_come_or_go():
    sample, delta = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6)
    frame = sample.unsqueeze(2)
    torch.testing.assert_close(pull_back(sample, SteeredInput(frame, frame + delta.unsqueeze(2))), sample + delta)
    moved = pull_back(frame, SteeredInput(sample, sample + delta))
    torch.testing.assert_close(moved, frame + delta.unsqueeze(2))


def test_packed_latents_are_found_behind_their_given_frame():
    """LTX image to video: the scheduler steps on all frames but the first, unpacked; the denoiser gets tokens."""
    latents, delta = torch.randn(1, 4, 3, 2, 5), torch.zeros(1, 4, 3, 2, 5)
    delta[:, :, 1:] = torch.randn(1, 4, 2, 2, 5)
    tokens, change = (each.flatten(2).transpose(1, 2) for each in (latents, delta))
    step = SteeredInput(tokens, tokens + change, (slice(None), slice(10, 30)), (3, 2, 5))
    torch.testing.assert_close(pull_back(latents[:, :, 1:], step), (latents + delta)[:, :, 1:])
    with pytest.raises(ValueError, match="not latents"):  # had the given frame moved too
        pull_back(latents[:, :, 1:], SteeredInput(tokens, tokens + 1, (slice(None), slice(0, 30)), (3, 2, 5)))
