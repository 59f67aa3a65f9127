"""Full-size models on the meta device: which layers read the text, and guided calls with real numbers of tokens."""

import diffusers
import pytest
import torch

from attnsteer import NAG, guide_denoiser
from attnsteer.attention import text_layers
from attnsteer.families import FAMILIES, family_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning"),
]
TEXT_LAYERS = {  # of the default configuration, which is a real model's: blocks that read text, refiners included
    "UNet2DConditionModel": 16,
    "UNet3DConditionModel": 16,
    "UNetMotionModel": 16,
    "Kandinsky3UNet": 18,
    "StableCascadeUNet": 64,
    "PixArtTransformer2DModel": 28,
    "SanaTransformer2DModel": 20,
    "SanaVideoTransformer3DModel": 20,
    "AllegroTransformer3DModel": 32,
    "LTXVideoTransformer3DModel": 28,
    "LTX2VideoTransformer3DModel": 2 * 48,
    "CosmosTransformer3DModel": 28,
    "SanaWMTransformer3DModel": 20,
    "WanTransformer3DModel": 40,
    "WanVACETransformer3DModel": 40 + 8,
    "WanAnimateTransformer3DModel": 40,
    "SkyReelsV2Transformer3DModel": 32,
    "ChronoEditTransformer3DModel": 40,
    "HeliosTransformer3DModel": 40,
    "Kandinsky5Transformer3DModel": 2 + 32,
    "Kandinsky6Transformer3DModel": 2 * 60,
    "SD3Transformer2DModel": 18,
    "FluxTransformer2DModel": 19 + 38,
    "Flux2Transformer2DModel": 8 + 48,
    "Flux3Transformer2DModel": 5 + 28,
    "ChromaTransformer2DModel": 19 + 38,
    "BriaTransformer2DModel": 19 + 38,
    "BriaFiboTransformer2DModel": 19 + 38,
    "LongCatImageTransformer2DModel": 19 + 38,
    "OvisImageTransformer2DModel": 6 + 27,
    "AuraFlowTransformer2DModel": 4 + 32,
    "CogVideoXTransformer3DModel": 30,
    "CogView3PlusTransformer2DModel": 30,
    "CogView4Transformer2DModel": 30,
    "GlmImageTransformer2DModel": 30,
    "MotifVideoTransformer3DModel": 20 + 40,
    "Krea2Transformer2DModel": 2 + 28,
    "PRXTransformer2DModel": 16,
    "QwenImageTransformer2DModel": 60,
    "NucleusMoEImageTransformer2DModel": 24,
    "HunyuanVideoTransformer3DModel": 20 + 40,
    "HunyuanVideoFramepackTransformer3DModel": 20 + 40,
    "HunyuanImageTransformer2DModel": 20 + 40,
    "HunyuanVideo15Transformer3DModel": 54,
    "ZImageTransformer2DModel": 30,
    "Lumina2Transformer2DModel": 26,
    "ErnieImageTransformer2DModel": 24,
    "MochiTransformer3DModel": 48,
}


def full_size(name, **options):
    with torch.device("meta"):
        return getattr(diffusers, name, None)(**options).requires_grad_(False)


@pytest.mark.parametrize("name", [name for name in TEXT_LAYERS if hasattr(diffusers, name)])
def test_every_block_of_a_full_size_model_is_found(name):
    denoiser = full_size(name)
    layers = text_layers(denoiser, family_of(denoiser))
    assert len(layers) == TEXT_LAYERS[name]
    assert [layer.index for layer in layers] == list(range(len(layers)))


CALLS = {
    "FluxTransformer2DModel": (
        {
            "hidden_states": (1, 4096, 64),
            "timestep": (1,),
            "pooled_projections": (1, 768),
            "img_ids": (4096, 3),
        },
        lambda n: {"encoder_hidden_states": (1, n, 4096), "txt_ids": (n, 3)},
        512,
    ),
    "SD3Transformer2DModel": (
        {"hidden_states": (2, 16, 128, 128), "timestep": (2,), "pooled_projections": (2, 2048)},
        lambda n: {"encoder_hidden_states": (2, n, 4096)},
        333,
    ),
    "UNet2DConditionModel": (
        {"sample": (2, 4, 64, 64), "timestep": (2,)},
        lambda n: {"encoder_hidden_states": (2, n, 1280)},
        77,
    ),
    "WanTransformer3DModel": (
        {"hidden_states": (1, 16, 21, 60, 104), "timestep": (1,)},
        lambda n: {"encoder_hidden_states": (1, n, 4096)},
        512,
    ),
    "LTXVideoTransformer3DModel": (
        {"hidden_states": (1, 6144, 128), "timestep": (1,)},
        lambda n: {"encoder_hidden_states": (1, n, 4096), "encoder_attention_mask": (1, n)},
        128,
    ),
    "PixArtTransformer2DModel": (
        {"hidden_states": (1, 4, 128, 128), "timestep": (1,)},
        lambda n: {"encoder_hidden_states": (1, n, 4096), "encoder_attention_mask": (1, n)},
        300,
    ),
}
OPTIONS = {
    "PixArtTransformer2DModel": {"caption_channels": 4096, "use_additional_conditions": False},
}
PLAIN = {
    "LTXVideoTransformer3DModel": {"num_frames": 16, "height": 16, "width": 24},
    "PixArtTransformer2DModel": {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_guided_call_of_a_full_size_model_reaches_every_layer(name):
    denoiser = full_size(name, **OPTIONS.get(name, {}))
    shapes, text, tokens = CALLS[name]
    call = {key: torch.empty(shape, device="meta") for key, shape in {**shapes, **text(tokens)}.items()}
    negative = {key: torch.empty(shape, device="meta") for key, shape in text(tokens // 2).items()}
    with torch.no_grad(), guide_denoiser(denoiser, NAG(6.0, 2.5, 0.25), negative=negative):
        output = denoiser(**call, **PLAIN.get(name, {}), return_dict=False)[0]  # an unseen layer raises
    latents = shapes[FAMILIES[name].latents]
    assert output.shape[0] == latents[0]
    assert output.shape[-2:] == torch.Size(latents[-2:]) or output.shape[1] == latents[1]
