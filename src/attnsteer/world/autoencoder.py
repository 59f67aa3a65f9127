"""A stock AutoencoderKL whose weights are set, not trained, so that its latents are the picture's pixels.

The shapes world needs no compression, yet every stock pipeline wants an autoencoder with normalisation layers. Each
group norm sees the signal s riding on a large constant b that other channels carry with the opposite sign: the
variance is b^2 up to a relative error of |s|^2 / (2 b^2), so normalising only divides by b. The mean that it subtracts
is taken back by subtracting a channel that holds b alone, and SiLU is the identity at b.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

CARRIER = 64.0
"""b: exactly representable in float16; relative error of the round trip about 1e-4."""
CHANNELS = 8
"""3 signals + b, 1 reference + b, 4 with - b: the mean is small and the variance is b^2."""


def pixel_autoencoder(size: int) -> AutoencoderKL:
    """An AutoencoderKL with 3 latent channels at the picture's own resolution (`size` pixels), values in [-1, 1]."""
    autoencoder = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=3, sample_size=size, block_out_channels=(CHANNELS,),
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), layers_per_block=1,
        norm_num_groups=1, mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False,
        scaling_factor=1.0, shift_factor=0.0,
    )  # fmt: skip
    with torch.no_grad():
        for module in autoencoder.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
                if module.bias is not None:
                    module.bias.zero_()
        for half in (autoencoder.encoder, autoencoder.decoder):
            _carry(half.conv_in)
            half.conv_norm_out.weight.fill_(CARRIER)
            half.conv_norm_out.bias.zero_()
            _collect(half.conv_out)
        # The encoder's second half of channels is the log-variance of the latents: as good as none.
        autoencoder.encoder.conv_out.bias[3:] = -30.0
    return autoencoder.eval().requires_grad_(False)


def _carry(convolution: nn.Conv2d) -> None:
    """Channels 0-2: b + signal. Channel 3: b. Channels 4-7: -b."""
    for channel in range(3):
        convolution.weight[channel, channel, 1, 1] = 1.0
    convolution.bias[:4] = CARRIER
    convolution.bias[4:] = -CARRIER


def _collect(convolution: nn.Conv2d) -> None:
    """Each signal channel minus the reference channel."""
    for channel in range(3):
        convolution.weight[channel, channel, 1, 1] = 1.0
        convolution.weight[channel, 3, 1, 1] = -1.0
