"""What must hold for negative guidance of any stock pipeline call, and an independent way to compute the same."""

import inspect
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import nn

from attnsteer import NAG, guide
from tiny.lockstep import lock_step
from tiny.oracle import nag_formula
from tiny.state import fingerprint

PROMPT, NEGATIVE = "a red circle to the left of a dog", "blurry cartoon cat"
SETTINGS = (6.0, 2.0, 0.6)
RULE = NAG(*SETTINGS)
TEXT = ("encoder_hidden_states", "txt_ids")


# Which batch rows of the denoiser's call number `index` read the prompt


def every(index, batch):
    return list(range(batch))


def second_half(index, batch):
    return list(range(batch // 2, batch))


def all_but_first_third(index, batch):
    return list(range(batch // 3, batch))


def first_third(index, batch):
    return list(range(batch // 3))


def even_calls(index, batch):
    return every(index, batch) if index % 2 == 0 else []


def generate(pipe, call, prompt=PROMPT, seed=3, **options):
    """The latents of a call; some pipelines draw from the global generator too. Modular ones name their `output`."""
    plain = {} if "output" in call else {"return_dict": False}
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        result = pipe(**{"prompt": prompt, "generator": generator, **plain, **call, **options})
    return torch.as_tensor(result[0] if plain else result)


def differs(first, second, threshold=1e-3):
    return (first - second).abs().max() > threshold * second.abs().max()


def assert_close(result, expected, tolerance=1e-4):
    torch.testing.assert_close(result, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def denoisers_of(pipe):
    return [pipe.components[name] for name in ("unet", "transformer", "transformer_2") if pipe.components.get(name)]


def modules_of(pipe):
    """All modules but the VAE, which keeps caches of its own."""
    return [part for name, part in pipe.components.items() if isinstance(part, nn.Module) and name != "vae"]


def by_name(module, args, kwargs):
    return dict(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments) | {"self": None}


def copied(value):
    """Stock forwards take entries out of the containers they get."""
    if type(value) is dict:
        return {key: copied(entry) for key, entry in value.items()}
    return [copied(entry) for entry in value] if type(value) is list else value


class Copying:
    """A denoiser that gets containers of its own."""

    def __init__(self, denoiser):
        self.denoiser = denoiser

    def __call__(self, **kwargs):
        return self.denoiser(**copied(kwargs))


@contextmanager
def replaced_forwards(denoisers, answer):
    """The denoisers' calls are answered by `answer(denoiser, arguments by name)`, which may call them."""
    stock = [denoiser.forward for denoiser in denoisers]

    def replacement(denoiser, forward):
        def forward_replaced(*args, **kwargs):
            arguments = by_name(denoiser, args, kwargs)
            as_tuple = not arguments.pop("return_dict", True)
            del arguments["self"]
            denoiser.forward = forward
            try:
                output = answer(denoiser, arguments)
                return (output,) if as_tuple else SimpleNamespace(sample=output)
            finally:
                denoiser.forward = forward_replaced

        return forward_replaced

    owned = ["forward" in vars(denoiser) for denoiser in denoisers]
    for denoiser, forward in zip(denoisers, stock, strict=True):
        denoiser.forward = replacement(denoiser, forward)
    try:
        yield
    finally:
        for denoiser, forward, own in zip(denoisers, stock, owned, strict=True):
            if own:
                denoiser.forward = forward
            else:
                del denoiser.forward


def denoiser_calls(pipe, run):
    """The arguments of the denoiser calls that `run()` makes."""
    seen = []

    def answer(denoiser, arguments):
        seen.append(copied(arguments))
        return denoiser(**arguments, return_dict=False)[0]

    with replaced_forwards(denoisers_of(pipe), answer):
        run()
    return seen


def image_tokens(denoiser, arguments):
    """Where SD3 has its image tokens; its texts begin with the same token. Elsewhere texts differ in every token."""
    if "SD3" not in type(denoiser).__name__:
        return None
    return slice(0, arguments["hidden_states"][0, 0].numel() // denoiser.config.patch_size**2)


def by_lock_step(pipe, call, rows, negative=NEGATIVE, **options):
    """The guided latents, with every denoiser call computed by `lock_step`. `rows` tells what to guide."""
    encoded = denoiser_calls(pipe, lambda: generate(pipe, call, prompt=negative, **options))[0]
    last = len(encoded[TEXT[0]]) - 1
    place, count = (rows(0, last + 1) or [last])[0], [0]

    def answer(denoiser, arguments):
        positive = {name: arguments[name] for name in TEXT if arguments.get(name) is not None}
        rest = {name: value for name, value in arguments.items() if name not in positive}
        own = positive[TEXT[0]]
        guided = rows(count[0], len(own))
        count[0] += 1
        text = encoded[TEXT[0]][place]
        other = torch.stack([text if row in guided else own[row] for row in range(len(own))])
        contrast = {**positive, TEXT[0]: other}
        if guided and TEXT[1] in positive:
            contrast[TEXT[1]] = encoded[TEXT[1]]
        image = image_tokens(denoiser, rest)
        return lock_step(Copying(denoiser), rest, positive, contrast, nag_formula(*SETTINGS), image=image)

    with replaced_forwards(denoisers_of(pipe), answer):
        return generate(pipe, call, **options)


def check_guidance(pipe, call, rows=None, tolerance=1e-4):
    """Guided, the pipeline gives another picture (the one of `by_lock_step`, given `rows`) and stays as it was.

    Returns: The guided and the plain latents.
    """
    plain = generate(pipe, call)
    before = fingerprint(*modules_of(pipe))
    guided = guide(pipe, RULE)
    result = generate(guided, call, nag_negative_prompt=NEGATIVE)
    assert fingerprint(*modules_of(pipe)) == before
    assert differs(result, plain)
    assert torch.equal(generate(guided, call, nag_negative_prompt=PROMPT), plain)
    assert torch.equal(generate(guided, call, nag_negative_prompt=NEGATIVE, nag_scale=1.0), plain)
    assert torch.equal(generate(pipe, call), plain)
    if rows is not None:
        assert_close(result, by_lock_step(pipe, call, rows), tolerance)
    return result, plain
