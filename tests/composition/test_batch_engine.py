"""The doubled batch, which knows nothing of the model, agrees where adapters and ControlNets hand in more tensors."""

import pytest
from diffusers import (
    FluxControlNetPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPAGPipeline,
)

from attnsteer import guide
from composition.checks import NEGATIVE, RULE, assert_close, differs, generate
from tiny import CALLS, build
from tiny.variants import PHOTO, controlnet, image_embeds, ip_adapter, lora, t2i_adapter, variant

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


def with_controlnet(name):
    stock = build(name)
    cls = StableDiffusionControlNetPipeline if name == "sd" else FluxControlNetPipeline
    return variant(stock, cls, controlnet=controlnet(stock)), {"image" if name == "sd" else "control_image": PHOTO}


def with_t2i_adapter(name):
    return variant(name, StableDiffusionAdapterPipeline, adapter=t2i_adapter()), {"image": PHOTO}


def with_ip_adapter(name):
    pipe = build(name)
    pipe.load_ip_adapter(ip_adapter(pipe), subfolder="", weight_name="", image_encoder_folder=None)
    return pipe, {"ip_adapter_image_embeds": image_embeds()}


def with_lora(name):
    pipe = build(name)
    pipe.load_lora_weights(lora({"transformer": pipe.transformer}))
    return pipe, {}


@pytest.mark.parametrize(
    ("made", "name"),
    [(with_controlnet, "sd"), (with_controlnet, "flux"), (with_t2i_adapter, "sd"), (with_ip_adapter, "sd")]
    + [(with_lora, "flux")],
)
def test_equals_the_engine_with_rows(made, name):
    pipe, options = made(name)
    call = {**CALLS[name], **({"guidance_scale": 1.0} if name == "sd" else {}), **options}
    result = generate(guide(pipe, RULE, engine="batch"), call, nag_negative_prompt=NEGATIVE)
    assert differs(result, generate(pipe, call))
    assert_close(result, generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE))


def test_processors_that_cut_the_batch_are_an_error():
    guided = guide(variant("sd", StableDiffusionPAGPipeline, pag_applied_layers=["mid"]), RULE, engine="batch")
    with pytest.raises(ValueError, match="PAGCFGIdentitySelfAttnProcessor2_0 cuts into equal pieces"):
        generate(guided, {**CALLS["sd"], "guidance_scale": 5.0}, nag_negative_prompt=NEGATIVE)
