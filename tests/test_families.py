"""Every row of `attnsteer.families`, on a tiny random stock model of its class."""

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models import transformers, unets
from torch import Tensor, nn

from attnsteer import NAG, UnsupportedModelError, guide_denoiser, record_maps
from attnsteer.families import FAMILIES, WITHOUT_ROW, family_of
from attnsteer.inject import taken
from attnsteer.install import Guidance, negative_guidance
from attnsteer.selfcheck import self_check
from attnsteer.support import pipelines_by_denoiser, support_table
from tiny.lockstep import lock_step
from tiny.models import TINY, Tiny
from tiny.oracle import nag_formula
from tiny.state import fingerprint

RULE = NAG(scale=6.0, tau=1.5, alpha=0.5)
FORMULA = nag_formula(6.0, 1.5, 0.5)
pytestmark = [  # of stock models, not of ours
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported:UserWarning"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning"),
]
EVERY = pytest.mark.parametrize("name", sorted(TINY))


@dataclass(frozen=True)
class Example:
    """A tiny denoiser, a call without text, and texts of two lengths."""

    tiny: Tiny
    denoiser: nn.Module
    call: dict[str, Any]
    positive: dict[str, Any]
    negative: dict[str, Any]
    other_length: dict[str, Any]
    plain: Tensor


@functools.cache
def denoiser_classes() -> dict[str, type]:
    found = {"UNetControlNetXSModel": diffusers.UNetControlNetXSModel}
    for package in (transformers, unets):
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            for name, value in vars(module).items():
                own = isinstance(value, type) and value.__module__ == module.__name__
                if own and issubclass(value, diffusers.ModelMixin):
                    found[name] = value
    return found


@functools.cache
def example(name: str) -> Example:
    tiny = TINY[name]
    if (tiny.cls or name) not in denoiser_classes():
        pytest.skip(f"this diffusers has no {tiny.cls or name}")
    draw = torch.Generator().manual_seed(len(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        denoiser = denoiser_classes()[tiny.cls or name](**tiny.config).eval().requires_grad_(False)
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    call = tiny.call(random, tiny.batch)
    texts = [tiny.text(random, tiny.batch, tiny.lengths[which]) for which in (0, 0, 1)]
    return Example(tiny, denoiser, call, *texts, run(denoiser, {**call, **texts[0]}))


def run(denoiser: nn.Module, call: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        result = denoiser(**call, return_dict=False)
    return picture(result[0] if isinstance(result, tuple) else result)


def picture(output: Any) -> Tensor:
    return torch.stack(output) if isinstance(output, list) else output


def guided(case: Example, negative: dict[str, Any], rows: slice | None = None) -> Tensor:
    with guide_denoiser(case.denoiser, RULE, negative=text_inputs(case, negative), rows=rows):
        return run(case.denoiser, {**case.call, **case.positive})


def text_inputs(case: Example, text: dict[str, Any]) -> dict[str, Any]:
    names = [entry.name for entry in family_of(case.denoiser).text]
    return {name: value for name, value in text.items() if name in names}


def close(first: Tensor, second: Tensor, plain: Tensor, tolerance: float = 5e-6) -> None:
    torch.testing.assert_close(first, second, atol=float(tolerance * plain.abs().max()), rtol=0)


def test_every_row_has_a_tiny_model():
    assert {tiny.cls or name for name, tiny in TINY.items()} | {"UNet2DConditionModel"} == set(FAMILIES)


def test_every_denoiser_class_of_diffusers_has_a_row_or_a_reason():
    known = set(FAMILIES) | set(WITHOUT_ROW)
    assert set(denoiser_classes()) - known == set()
    assert not set(FAMILIES) & set(WITHOUT_ROW)
    assert len(FAMILIES) >= 60


def test_the_support_table_can_name_the_pipelines():
    users = pipelines_by_denoiser()
    assert {"FluxPipeline", "FluxKontextPipeline", "FluxFillPipeline"} <= set(users["FluxTransformer2DModel"])
    assert "StableDiffusionXLPipeline" in users["UNet2DConditionModel"]
    line = next(line for line in support_table(pipelines=True).splitlines() if "`WanTransformer3DModel`" in line)
    assert "| joined at the input, key and value probe | yes | Wan2.1 |" in line
    assert "WanImageToVideoPipeline" in line


def test_a_class_without_a_row_says_why():
    with pytest.raises(UnsupportedModelError, match="no row.*reads no text"):
        family_of(type("UNet2DModel", (nn.Module,), {})())


@EVERY
def test_equals_two_forwards_in_lock_step(name):
    case = example(name)
    result = guided(case, case.negative)
    tiny = case.tiny
    expected = lock_step(case.denoiser, case.call, case.positive, case.negative, FORMULA, tiny.pooling, tiny.image)
    close(result, picture(expected), case.plain)
    assert (result - case.plain).abs().max() > 1e-3 * case.plain.abs().max()


@pytest.mark.parametrize("name", sorted(name for name, tiny in TINY.items() if not tiny.shifts))
def test_texts_of_different_length(name):
    case, tiny = example(name), TINY[name]
    expected = lock_step(case.denoiser, case.call, case.positive, case.other_length, FORMULA, tiny.pooling, tiny.image)
    close(guided(case, case.other_length), picture(expected), case.plain)


@EVERY
def test_the_self_check_passes(name):
    case = example(name)

    def trial(guidance):
        if guidance is None:
            return case.plain
        with negative_guidance(case.denoiser, guidance):
            return run(case.denoiser, {**case.call, **case.positive})

    family, arguments = family_of(case.denoiser), {**case.call, **case.positive}
    decision = (slice(0, case.tiny.batch), text_inputs(case, case.other_length))
    errors = self_check(trial, family, arguments, Guidance(RULE.combine, lambda _: None), decision)
    assert max(errors) < 5e-6


@EVERY
def test_nothing_is_left_behind(name):
    case = example(name)
    before, plain = fingerprint(case.denoiser), run(case.denoiser, {**case.call, **case.positive})
    guided(case, case.negative)
    assert fingerprint(case.denoiser) == before
    assert torch.equal(run(case.denoiser, {**case.call, **case.positive}), plain)


@pytest.mark.parametrize("name", sorted(name for name, tiny in TINY.items() if tiny.batch > 1))
def test_rows_outside_stay_plain(name):
    case = example(name)
    everything = guided(case, case.negative)
    family = family_of(case.denoiser)
    rows = slice(2, 4) if name == "UNetMotionModel" else slice(1, 2)  # two frames for each picture
    some = {
        entry.name: taken(entry, case.negative[entry.name], rows)
        for entry in family.text
        if entry.name in case.negative
    }
    result = guided(case, some, rows)
    close(result, torch.cat([case.plain[:1], everything[1:]]), case.plain)


@EVERY
def test_gradients_flow_and_change_nothing(name):
    case = example(name)
    family = family_of(case.denoiser)
    latents = case.call[family.latents]
    leaves = [t.clone().requires_grad_(True) for t in latents] if isinstance(latents, list) else None
    leaf = latents.clone().requires_grad_(True) if leaves is None else leaves[0]
    call = {**case.call, **case.positive, family.latents: leaf if leaves is None else leaves}
    with guide_denoiser(case.denoiser, RULE, negative=text_inputs(case, case.negative)):
        result = case.denoiser(**call, return_dict=False)
    output = picture(result[0] if isinstance(result, tuple) else result)
    close(output.detach(), guided(case, case.negative), case.plain)
    (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
    assert gradient.abs().max() > 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "name", ["CogVideoXTransformer3DModel", "HunyuanVideoTransformer3DModel", "QwenImageTransformer2DModel"]
)
def test_the_side_car_survives_gradient_checkpointing(name):
    case = example(name)
    call = {**case.call, **case.positive}
    gradients = []
    for checkpointing in (False, True):
        leaf = case.call["hidden_states"].clone().requires_grad_(True)
        if checkpointing:
            case.denoiser.enable_gradient_checkpointing()
        try:
            case.denoiser.train(checkpointing)
            with guide_denoiser(case.denoiser, RULE, negative=text_inputs(case, case.negative)):
                output = case.denoiser(**{**call, "hidden_states": leaf}, return_dict=False)[0]
                gradients.append(torch.autograd.grad(output.square().sum(), leaf)[0])
        finally:
            case.denoiser.eval()
            case.denoiser.disable_gradient_checkpointing()
    close(gradients[1], gradients[0], gradients[0], 1e-5)


@pytest.mark.parametrize("name", ["QwenImageTransformer2DModel", "Lumina2Transformer2DModel", "PRXTransformer2DModel"])
def test_a_compiled_denoiser_gives_the_same(name):
    case = example(name)
    compiled = torch.compile(case.denoiser, backend="eager")
    with guide_denoiser(compiled, RULE, negative=text_inputs(case, case.negative)):
        result = run(compiled, {**case.call, **case.positive})
    torch.compiler.reset()
    close(result, guided(case, case.negative), case.plain)


@pytest.mark.parametrize(
    "name", sorted(name for name, tiny in TINY.items() if FAMILIES[tiny.cls or name].grid != "none")
)
def test_attention_maps_have_the_pictures_shape(name):
    case = example(name)
    call = {**case.call, **case.positive}
    if family_of(case.denoiser).rowwise:
        with pytest.raises(ValueError, match="give one prompt"), record_maps(case.denoiser, [[0]]):
            run(case.denoiser, call)
        batched = {key: value for key, value in call.items() if hasattr(value, "__len__")}
        call |= {key: value[:1] for key, value in batched.items() if len(value) == case.tiny.batch}
    with record_maps(case.denoiser, [[0], [1, 2]], size=4, normalise=True) as recorder:
        run(case.denoiser, call)
    first, second = recorder.maps
    assert first.shape == second.shape
    assert first.shape[-2:] == (4, 4)
    assert not torch.allclose(first, second)
