"""`guide` on stock pipelines of every family."""

import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch._dynamo.utils import counters

from attnsteer import NAG, UnsupportedModelError, guide, guide_denoiser
from attnsteer.changes import Hook, applied
from attnsteer.install import before_denoiser_call
from tiny import CALLS, NAMES, build
from tiny.state import fingerprint

PROMPT, NEGATIVE = "a red circle to the left of a dog", "blurry cartoon cat"
FAMILIES = ("sd", "sdxl", "sd3", "flux", "wan", "wan_i2v")
CFG_ON = {
    "sd": {"guidance_scale": 5.0},
    "sdxl": {"guidance_scale": 5.0},
    "sd3": {"guidance_scale": 5.0},
    "flux": {"true_cfg_scale": 3.0},
    "wan": {"guidance_scale": 5.0},
    "wan_two_experts": {"guidance_scale": 5.0},
    "wan_i2v": {"guidance_scale": 5.0},
}
CFG_OFF = {name: {} if name == "flux" else {"guidance_scale": 1.0} for name in NAMES}
RULE = NAG(scale=6.0, tau=2.0, alpha=0.6)


def generate(pipe, name, prompt=PROMPT, seed=3, **options):
    call = {**CALLS[name], **CFG_OFF[name], **options}
    return pipe(prompt=prompt, generator=torch.Generator().manual_seed(seed), return_dict=False, **call)[0]


def denoiser_of(pipe):
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def differs(first, second):
    return (first - second).abs().max() > 1e-4 * second.abs().max()  # rounding is below 1e-6


def by_hand(pipe, name, negative, cond, seed=3, **options):
    """The guided run without `guide`: encode the negative prompt in a run of its own, then guide chosen calls."""
    denoiser, seen = denoiser_of(pipe), []

    def keep(module, args, kwargs):
        seen.append(kwargs)

    with applied([Hook(denoiser, "before", keep)]):
        generate(pipe, name, prompt=negative, seed=seed, **options)
    text = {key: seen[0][key] for key in ("encoder_hidden_states", "txt_ids") if key in seen[0]}
    count = [0]

    @contextmanager
    def guided_call(module, args, kwargs):
        rows = cond(count[0], kwargs["encoder_hidden_states"].shape[0])
        count[0] += 1
        if rows is None:
            yield
            return
        batch = kwargs["encoder_hidden_states"].shape[0]
        negative = {key: value if key == "txt_ids" else value[-batch:] for key, value in text.items()}
        with guide_denoiser(denoiser, RULE, negative=negative, rows=rows):
            yield

    forward = denoiser.forward

    def wrapped(*args, **kwargs):
        denoiser.forward = forward
        try:
            with guided_call(denoiser, args, kwargs):
                return denoiser(*args, **kwargs)
        finally:
            denoiser.forward = wrapped

    denoiser.forward = wrapped
    try:
        return generate(pipe, name, seed=seed, **options)
    finally:
        del denoiser.forward


@pytest.mark.parametrize("name", FAMILIES)
def test_without_cfg_every_row_is_guided(name):
    pipe = build(name)
    plain = generate(pipe, name)
    result = generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE)
    assert differs(result, plain)
    torch.testing.assert_close(result, by_hand(pipe, name, NEGATIVE, lambda index, batch: slice(0, batch)))


@pytest.mark.parametrize("name", FAMILIES)
def test_with_cfg_only_conditional_rows_and_calls_are_guided(name):
    pipe = build(name)
    options = {**CFG_ON[name], "negative_prompt": "low quality"}
    separate = name in ("flux", "wan", "wan_i2v")

    def cond(index, batch):
        return (slice(0, batch) if index % 2 == 0 else None) if separate else slice(batch // 2, batch)

    plain = generate(pipe, name, **options)
    result = generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE, **options)
    assert differs(result, plain)
    torch.testing.assert_close(result, by_hand(pipe, name, NEGATIVE, cond, **options))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("cfg", [CFG_ON, CFG_OFF], ids=["cfg", "no cfg"])
def test_the_same_text_is_an_exact_no_op(name, cfg):
    pipe = build(name)
    plain = generate(pipe, name, **cfg[name])
    result = generate(guide(pipe, RULE), name, nag_negative_prompt=PROMPT, **cfg[name])
    assert torch.equal(result, plain)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("setting", [{"nag_scale": 1.0}, {"nag_alpha": 0.0}])
def test_identity_settings_cost_nothing_and_are_bit_exact(name, setting):
    pipe = build(name)
    plain = generate(pipe, name)
    calls = []
    with before_denoiser_call(denoiser_of(pipe), lambda *_: calls.append(1)):
        encoder = pipe.text_encoder.register_forward_hook(lambda *_: calls.append("encoded"))
        result = generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE, **setting)
        encoder.remove()
    assert calls == ["encoded", 1, 1]
    assert torch.equal(result, plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_guided_call_leaves_no_trace(name):
    pipe = build(name)
    plain = generate(pipe, name)
    parts = {
        key: value for key, value in pipe.components.items() if key != "vae"
    }  # a video VAE keeps caches of its own
    modules = [module for module in parts.values() if isinstance(module, torch.nn.Module)]
    before = fingerprint(*modules, pipe.scheduler)
    scheduler = set(vars(pipe.scheduler))
    assert differs(generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE, nag_end=0.5), plain)
    after = fingerprint(*modules, pipe.scheduler)
    place = f"{len(modules)}."
    assert {k: v for k, v in after.items() if not k.startswith(place)} == {
        k: v for k, v in before.items() if not k.startswith(place)
    }
    assert set(vars(pipe.scheduler)) == scheduler
    assert torch.equal(generate(pipe, name), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exception_in_the_middle_leaves_the_pipeline_as_it_was(name):
    pipe = build(name)
    plain = generate(pipe, name)
    before = fingerprint(denoiser_of(pipe))

    def fail(pipe, step, timestep, values):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE, nag_end=0.9, callback_on_step_end=fail)
    assert fingerprint(denoiser_of(pipe)) == before
    assert "step" not in vars(pipe.scheduler)
    assert torch.equal(generate(pipe, name), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_random_numbers_are_those_of_the_plain_run(name):
    pipe = build(name)
    call = {**CALLS[name], **CFG_OFF[name], "return_dict": False}

    def states(run):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        generator = torch.Generator().manual_seed(5)
        run(generator)
        return torch.rand(3).tolist(), np.random.rand(), random.random(), torch.rand(3, generator=generator).tolist()

    guided = guide(pipe, RULE)
    plain = states(lambda generator: pipe(prompt=PROMPT, generator=generator, **call))
    assert (
        states(lambda generator: guided(prompt=PROMPT, generator=generator, nag_negative_prompt=NEGATIVE, **call))
        == plain
    )


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_noise_from_the_global_generator_is_that_of_the_plain_run(name):
    pipe, seen = build(name), []
    latents = {"sd": 0, "flux": "hidden_states"}[name]

    def keep(module, args, kwargs):
        seen.append(args[latents] if args else kwargs[latents])

    with applied([Hook(denoiser_of(pipe), "before", keep)]):
        for run in (pipe, guide(pipe, RULE)):
            torch.manual_seed(8)
            options = {} if run is pipe else {"nag_negative_prompt": NEGATIVE}
            run(PROMPT, **{**CALLS[name], **CFG_OFF[name]}, **options)
    first, second, dry = seen[0], seen[3], seen[2]
    assert torch.equal(first, second)
    assert torch.equal(first, dry)


@pytest.mark.parametrize("cfg", [CFG_ON, CFG_OFF], ids=["cfg", "no cfg"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_equals_its_prompts_one_by_one(name, cfg):
    pipe = build(name)
    guided = guide(pipe, RULE)
    prompts, negatives = [PROMPT, "a blue bear"], [NEGATIVE, "a photo of a green triangle"]
    if name == "wan_i2v":
        prompts, negatives = prompts[:1], negatives[:1]  # the stock pipeline takes one picture
    options = {**CFG_ON[name]} if cfg is CFG_ON else {}
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)][: len(prompts)]
    call = {**CALLS[name], **CFG_OFF[name], **options, "return_dict": False}
    together = guided(prompt=prompts, generator=generators, nag_negative_prompt=negatives, **call)[0]
    for row, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        alone = generate(guided, name, prompt, seed=row + 1, nag_negative_prompt=negative, **options)
        torch.testing.assert_close(together[row : row + 1], alone, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "wan"])
def test_several_pictures_per_prompt(name):
    pipe = build(name)
    guided = guide(pipe, RULE)
    keyword = "num_videos_per_prompt" if name == "wan" else "num_images_per_prompt"
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    call = {**CALLS[name], **CFG_ON[name], "return_dict": False, keyword: 2}
    prompts, negatives = [PROMPT, "a blue bear"], [NEGATIVE, "outline"]
    together = guided(prompt=prompts, generator=generators, nag_negative_prompt=negatives, **call)[0]
    assert together.shape[0] == 4
    for row in range(4):
        alone = generate(
            guided, name, prompts[row // 2], seed=row, nag_negative_prompt=negatives[row // 2], **CFG_ON[name]
        )
        torch.testing.assert_close(together[row : row + 1], alone, atol=2e-4, rtol=1e-3)


def test_rows_whose_negative_is_their_prompt_stay_plain():
    pipe = build("sd")
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    call = {**CALLS["sd"], "guidance_scale": 5.0, "return_dict": False}
    both = guide(pipe, RULE)([PROMPT, "a dog"], generator=generators, nag_negative_prompt=[NEGATIVE, "a dog"], **call)[
        0
    ]
    plain = generate(pipe, "sd", "a dog", seed=2, guidance_scale=5.0)
    torch.testing.assert_close(both[1:], plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_the_calls_negative_prompt_serves_where_no_other_is_given(name):
    pipe = build(name)
    guided = guide(pipe, RULE)
    expected = generate(guided, name, nag_negative_prompt=NEGATIVE)
    assert torch.equal(generate(guided, name, negative_prompt=NEGATIVE), expected)


@pytest.mark.parametrize(("start", "end", "active"), [(0.0, 0.5, [0, 1]), (0.5, 1.0, [2, 3]), (0.25, 0.26, [1])])
@pytest.mark.parametrize("name", ["sd", "wan"])
def test_windows_guide_the_steps_they_name(name, start, end, active):
    pipe = build(name)
    options = {**CFG_ON[name], "num_inference_steps": 4}
    calls_per_step = 2 if name == "wan" else 1

    def cond(index, batch):
        if index // calls_per_step not in active or (calls_per_step == 2 and index % 2):
            return None
        return slice(0, batch) if calls_per_step == 2 else slice(batch // 2, batch)

    result = generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE, nag_start=start, nag_end=end, **options)
    torch.testing.assert_close(result, by_hand(pipe, name, NEGATIVE, cond, **options))


def test_both_experts_are_guided():
    pipe = build("wan_two_experts")
    ran = []
    hooks = [
        pipe.components[name].register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in ("transformer", "transformer_2")
    ]
    steps = {"num_inference_steps": 4}
    plain = generate(pipe, "wan_two_experts", **steps)
    assert set(ran) == {"transformer", "transformer_2"}
    for hook in hooks:
        hook.remove()
    early = generate(guide(pipe, RULE), "wan_two_experts", nag_negative_prompt=NEGATIVE, nag_end=0.25, **steps)
    late = generate(guide(pipe, RULE), "wan_two_experts", nag_negative_prompt=NEGATIVE, nag_start=0.75, **steps)
    assert differs(early, plain)
    assert differs(late, plain)


def test_two_pipelines_of_one_class_are_independent():
    first, second = build("flux"), build("flux", seed=1)
    plain = generate(second, "flux")
    guided_first, guided_second = guide(first, RULE), guide(second, NAG(9.0, 1.5, 0.4))
    expected = generate(guided_second, "flux", nag_negative_prompt=NEGATIVE)
    seen = []

    def interleave(pipe, step, timestep, values):
        seen.append(generate(second, "flux"))
        seen.append(generate(guided_second, "flux", nag_negative_prompt=NEGATIVE))
        return values

    alone = generate(guided_first, "flux", nag_negative_prompt=NEGATIVE)
    together = generate(guided_first, "flux", nag_negative_prompt=NEGATIVE, callback_on_step_end=interleave)
    assert torch.equal(alone, together)
    assert torch.equal(seen[0], plain)
    assert torch.equal(seen[1], expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded_pipelines_are_guided_alike(name, tmp_path):
    pipe = build(name)
    expected = generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(generate(guide(loaded, RULE), name, nag_negative_prompt=NEGATIVE), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_validate_checks_the_first_guided_call(name):
    pipe, calls = build(name), []
    guided = guide(pipe, RULE, validate=True)
    denoiser_of(pipe).register_forward_hook(lambda *_: calls.append(1))
    result = generate(guided, name, nag_negative_prompt=NEGATIVE)
    assert len(calls) == 2 + 3  # two steps; plain, same text and leak once
    assert torch.equal(result, generate(guided, name, nag_negative_prompt=NEGATIVE))
    assert len(calls) == 2 + 3 + 2


def test_the_encoded_negative_prompt_is_kept_until_something_changes():
    pipe, encoded = build("sd"), []
    guided = guide(pipe, RULE)
    pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(1))

    def encodings(**options):
        encoded.clear()
        generate(guided, "sd", nag_negative_prompt=NEGATIVE, **options)
        return len(encoded)

    assert [encodings(), encodings(), encodings(seed=7)] == [2, 1, 1]
    assert encodings(guidance_scale=3.0) == 4
    changed = generate(pipe, "sd", NEGATIVE)
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.mul_(1.5)
    assert not torch.equal(generate(pipe, "sd", NEGATIVE), changed)
    assert encodings() == 2


def test_prompt_embeddings_instead_of_a_prompt():
    pipe = build("sd")
    embeds = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    expected = generate(guide(pipe, RULE), "sd", nag_negative_prompt=NEGATIVE)
    result = generate(guide(pipe, RULE), "sd", None, prompt_embeds=embeds, nag_negative_prompt=NEGATIVE)
    torch.testing.assert_close(result, expected)


def test_user_callbacks_run_once_per_step():
    pipe, steps = build("sd"), []

    def callback(pipe, step, timestep, values):
        steps.append(step)
        return values

    generate(guide(pipe, RULE), "sd", nag_negative_prompt=NEGATIVE, callback_on_step_end=callback)
    assert steps == [0, 1]


def test_cfg_that_ends_half_way_keeps_the_conditional_rows():
    pipe = build("sd")
    batches = []

    def end_cfg(pipe, step, timestep, values):
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": values["prompt_embeds"].chunk(2)[-1]}

    options = {"guidance_scale": 5.0, "callback_on_step_end": end_cfg, "num_inference_steps": 3}
    options["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]

    def one_end(pipe, step, timestep, values):
        return end_cfg(pipe, step, timestep, values) if step == 0 else {}

    options["callback_on_step_end"] = one_end

    def cond(index, batch):
        batches.append(batch)
        return slice(batch // 2, batch) if batch == 2 else slice(0, 1)

    expected = by_hand(pipe, "sd", NEGATIVE, cond, **options)
    assert batches == [2, 1, 1]
    torch.testing.assert_close(generate(guide(pipe, RULE), "sd", nag_negative_prompt=NEGATIVE, **options), expected)


class Steering:
    """A steering method that doubles the latents and notes what it is given."""

    kind = "steering"

    def __init__(self):
        self.seen = []

    @contextmanager
    def session(self, pipe, denoiser, capture, call_kwargs):
        self.seen.append(call_kwargs["prompt"])

        def callback(module, args, kwargs):
            self.seen.append(capture.rows(kwargs))
            return args, {**kwargs, capture.family.latents: 2 * kwargs[capture.family.latents]}

        with before_denoiser_call(denoiser, callback):
            yield
        self.seen.append("left")


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_steering_method_alone_and_with_a_negative_one(name):
    pipe = build(name)
    separate = name == "flux"
    rows = [slice(0, 1), None] * 2 if separate else [slice(1, 2)] * 2
    options = {**CFG_ON[name], "negative_prompt": "low quality"}
    for methods in ((), (RULE,)):
        steering = Steering()
        extra = {"nag_negative_prompt": NEGATIVE} if methods else {}
        result = generate(guide(pipe, steering, *methods), name, **options, **extra)
        assert steering.seen == [PROMPT, *rows, "left"]
        assert differs(result, generate(guide(pipe, *methods), name, **options, **extra))


def test_conditional_rows_without_any_negative_prompt():
    pipe, steering = build("sd"), Steering()
    generate(guide(pipe, steering), "sd", prompt=["", "a dog"], guidance_scale=5.0)
    assert steering.seen[1:3] == [slice(2, 4)] * 2
    steering.seen.clear()
    generate(guide(pipe, steering), "sd")
    assert steering.seen[1:3] == [slice(0, 1)] * 2


def test_methods_clash_or_are_none():
    pipe = build("sd")
    with pytest.raises(ValueError, match="two negative methods"):
        guide(pipe, NAG(), NAG())
    for wrong in (NAG, "nag", 5.0):
        with pytest.raises(TypeError, match="no guidance method"):
            guide(pipe, wrong)
    with pytest.raises(TypeError, match="needs a stock diffusers pipeline"):
        guide(guide(pipe), NAG())
    with pytest.raises(ValueError, match="no layer 99"):
        guide(pipe, NAG(layers=[99]))
    assert torch.equal(generate(guide(pipe), "sd"), generate(pipe, "sd"))


def test_a_missing_or_unexpected_negative_prompt_is_an_error():
    pipe = build("flux")
    with pytest.raises(ValueError, match="pass nag_negative_prompt"):
        generate(guide(pipe, NAG()), "flux")
    with pytest.raises(ValueError, match="need a negative method"):
        generate(guide(pipe), "flux", nag_negative_prompt=NEGATIVE)
    with pytest.raises(ValueError, match="need a negative method"):
        generate(guide(pipe), "flux", nag_scale=4.0)
    with pytest.raises(ValueError, match="3 negative prompts for 1 prompts"):
        generate(guide(pipe, NAG()), "flux", nag_negative_prompt=["a", "b", "c"])
    with pytest.raises(ValueError, match="tau must be >= 1"):
        generate(guide(pipe, NAG()), "flux", nag_negative_prompt=NEGATIVE, nag_tau=0.5)
    with pytest.raises(TypeError, match="unexpected keyword"):
        generate(guide(pipe, NAG()), "flux", nag_negative_prompt=NEGATIVE, nonsense=1)


def test_an_unknown_denoiser_is_an_error():
    class Unknown(torch.nn.Module):
        pass

    class Pipe:
        components = {"transformer": Unknown()}

    with pytest.raises(UnsupportedModelError, match="Unknown has no row"):
        guide(Pipe(), NAG())


def test_attributes_fall_through():
    pipe = build("sd")
    guided = guide(pipe, NAG())
    assert guided.unet is pipe.unet
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    guided.scheduler = scheduler
    assert pipe.scheduler is scheduler
    assert guided.to(torch.float64) is guided
    assert pipe.unet.dtype == torch.float64
    assert repr(guided).startswith("guide(StableDiffusionPipeline, NAG(")
    with pytest.raises(AttributeError, match="nothing"):
        _ = guided.nothing


def test_explain_tells_what_would_happen():
    explanation = guide(build("sdxl"), NAG(end=0.25)).explain("a dog", num_inference_steps=8)
    assert "unet: UNet2DConditionModel, 7 attention layers read the text" in str(explanation)
    assert "scale=3.0, tau=2.5, alpha=0.5" in str(explanation)
    assert "2 of 8 steps" in str(explanation)
    assert "through CFG only" in str(guide(build("sd")).explain("a dog"))


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_offloaded_pipelines(name):
    pipe = build(name)
    expected = generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE)
    plain = generate(pipe, name)
    cpu = torch.device("cpu")
    denoiser_of(pipe).enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    torch.testing.assert_close(generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE), expected)
    assert torch.equal(generate(pipe, name), plain)


@pytest.mark.parametrize("name", ["flux", "sd3"])  # one for each driver
def test_a_compiled_denoiser_is_compiled_once_for_guidance(name):
    pipe = build(name)
    plain, expected = generate(pipe, name), generate(guide(pipe, RULE), name, nag_negative_prompt=NEGATIVE)
    stock = pipe.transformer
    pipe.transformer = torch.compile(stock, backend="eager")
    guided, graphs = guide(pipe, RULE), []
    for seed in (3, 4):
        result = generate(guided, name, seed=seed, nag_negative_prompt=NEGATIVE)
        graphs.append(counters["stats"]["unique_graphs"])
        if seed == 3:
            torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    assert graphs[0] == graphs[1]
    pipe.transformer = stock
    assert torch.equal(generate(pipe, name), plain)


@pytest.fixture
def active_backend():
    """diffusers makes a model's backend the one of all models without their own: put it back."""
    active = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = active


def test_a_processor_or_backend_changed_between_calls_is_respected(active_backend):
    pipe = build("flux")
    guided = guide(pipe, RULE)
    expected = generate(guided, "flux", nag_negative_prompt=NEGATIVE)
    pipe.transformer.set_attention_backend("_native_math")
    torch.testing.assert_close(generate(guided, "flux", nag_negative_prompt=NEGATIVE), expected)
    assert {p._attention_backend.value for p in pipe.transformer.attn_processors.values()} == {"_native_math"}
    pipe.transformer.set_attn_processor(type(next(iter(pipe.transformer.attn_processors.values())))())
    torch.testing.assert_close(generate(guided, "flux", nag_negative_prompt=NEGATIVE), expected)
