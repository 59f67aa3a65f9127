"""What attnsteer must know about a denoiser class: one row each, data only.

To support another model, add one `Family` row to `FAMILIES` and one tiny configuration to the tests. A row says
which keywords of the denoiser's forward hold the text and which attention modules read it; everything else is generic.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

TextKind = Literal["tokens", "mask", "positions"]
Role = Literal["cross", "joint", "hybrid", "text"]


class UnsupportedModelError(ValueError):
    """The denoiser's class has no row in `attnsteer.families.FAMILIES`."""


@dataclass(frozen=True)
class TextInput:
    """A keyword of the denoiser's forward that grows with the text.

    Args:
        name: Keyword of the forward.
        axis: Axis along which text tokens are counted; negative counts from the end.
        kind: "tokens" (features, batch first), "mask" (batch first, nonzero = read), "positions" (no batch axis).
    """

    name: str
    axis: int
    kind: TextKind = "tokens"


@dataclass(frozen=True)
class Probe:
    """The module's own layers that turn text into keys and values, for modules that split their context by length.

    Args:
        key: Projection to keys.
        value: Projection to values.
        norm: Norm of the keys, before heads are split; empty for none.
        fused: One projection to keys and values, used when the module says `fused_projections`; empty for none.
    """

    key: str
    value: str
    norm: str = ""
    fused: str = ""


@dataclass(frozen=True)
class TextAttention:
    """Attention modules that read the text.

    Args:
        modules: Shell pattern of their names in the denoiser (`*` also matches dots).
        role: "cross" (queries image, keys text), "joint" (image and text on both sides), "hybrid" (queries image,
            keys image and text), "text" (text on both sides).
        text: Whether the text comes first or last in a sequence that also holds image tokens.
        offset: Number of other tokens before a first text, or behind a last one.
        when: Attribute of the module, or of the block around it, that must be truthy for the row to hold.
        probe: Set when the negative text has to be taken out of the module's context and projected separately.
    """

    modules: str
    role: Role
    text: Literal["first", "last"] = "first"
    offset: int = 0
    when: str = ""
    probe: Probe | None = None


@dataclass(frozen=True)
class SplitRun:
    """Modules that pool, count or normalise over the text sequence: they get each text separately.

    Args:
        cls: Class name of the modules.
        modules: Shell pattern of their names in the denoiser.
        axis: Axis of the text tokens in their first argument.
        keep: "both" joins the two results on the same axis; "positive" runs on the positive text alone.
    """

    cls: str
    modules: str = "*"
    axis: int = 1
    keep: Literal["both", "positive"] = "both"


@dataclass(frozen=True)
class Family:
    """One denoiser class.

    Args:
        denoiser: Name of the class in diffusers.
        latents: Keyword of the forward that holds the noisy latents.
        text: Keywords that hold the text; the first is the main one.
        attention: Attention modules that read the text. A module takes the first entry that fits.
        grid: How image tokens lie in the picture: "halvings" (latents, halved per level), "patches" (latents divided
            by the configuration's patch_size, frames first), "ids" (rows and columns in `img_ids`).
        order: Leading parts of module names in execution order, where that is not the order of definition.
        split: Modules that must see each text separately.
    """

    denoiser: str
    latents: str
    text: tuple[TextInput, ...]
    attention: tuple[TextAttention, ...]
    grid: Literal["halvings", "patches", "ids"]
    order: tuple[str, ...] = ()
    split: tuple[SplitRun, ...] = ()


_TEXT = TextInput("encoder_hidden_states", axis=1)
_WAN_PROBE = Probe("to_k", "to_v", norm="norm_k", fused="to_kv")

FAMILIES: Mapping[str, Family] = {
    row.denoiser: row
    for row in (
        Family(
            denoiser="UNet2DConditionModel",
            latents="sample",
            text=(_TEXT, TextInput("encoder_attention_mask", axis=1, kind="mask")),
            attention=(
                TextAttention("*.attn1", "cross", when="only_cross_attention"),
                TextAttention("*.attn2", "cross"),
                TextAttention("*.attentions.[0-9]", "cross", when="only_cross_attention"),
                TextAttention("*.attentions.[0-9]", "hybrid", when="added_kv_proj_dim"),
            ),
            grid="halvings",
            order=("down_blocks", "mid_block", "up_blocks"),
            split=(
                SplitRun("GroupNorm", "*.norm_cross", axis=2),
                SplitRun("TextTimeEmbedding", "add_embedding", keep="positive"),
            ),
        ),
        Family(
            denoiser="SD3Transformer2DModel",
            latents="hidden_states",
            text=(_TEXT,),
            attention=(TextAttention("transformer_blocks.*.attn", "joint", text="last"),),
            grid="patches",
        ),
        Family(
            denoiser="FluxTransformer2DModel",
            latents="hidden_states",
            text=(_TEXT, TextInput("txt_ids", axis=-2, kind="positions")),
            attention=(
                TextAttention("transformer_blocks.*.attn", "joint"),
                TextAttention("single_transformer_blocks.*.attn", "joint"),
            ),
            grid="ids",
        ),
        Family(
            denoiser="WanTransformer3DModel",
            latents="hidden_states",
            text=(_TEXT,),
            attention=(
                TextAttention("blocks.*.attn2", "cross", when="add_k_proj", probe=_WAN_PROBE),
                TextAttention("blocks.*.attn2", "cross"),
            ),
            grid="patches",
        ),
    )
}


def family_of(denoiser: nn.Module) -> Family:
    """The row of a denoiser, looked up by exact class name along its method resolution order.

    Raises: UnsupportedModelError if there is none; it names the nearest row and says how to add one.
    """
    for cls in type(denoiser).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    name = type(denoiser).__name__
    nearest = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.0)[0]
    raise UnsupportedModelError(
        f"{name} has no row in attnsteer.families.FAMILIES (known: {', '.join(sorted(FAMILIES))}). To add one, copy "
        f"the nearest row, {nearest}, name the keywords that hold text and the attention modules that read it, and "
        "check it with guide(..., validate=True)"
    )
