"""Rows of transformers in which text and image tokens attend to each other, and whose texts join at the input."""

from dataclasses import replace

from attnsteer.families.row import Family, TextAttention, TextInput

_TEXT = TextInput("encoder_hidden_states", axis=1)
_IDS = TextInput("txt_ids", axis=-2, kind="positions")
_FLUX = (
    TextAttention("transformer_blocks.*.attn", "joint"),
    TextAttention("single_transformer_blocks.*.attn", "joint"),
)
_FLUX2 = tuple(replace(entry, references=True) for entry in _FLUX)
_ATTN1 = (TextAttention("transformer_blocks.*.attn1", "joint"),)

ROWS = (
    Family(
        denoiser="SD3Transformer2DModel",
        latents="hidden_states",
        text=(_TEXT,),
        attention=(TextAttention("transformer_blocks.*.attn", "joint", text="last"),),
        grid="patches",
    ),
    Family("FluxTransformer2DModel", "hidden_states", (_TEXT, _IDS), _FLUX, grid="ids"),
    Family("Flux2Transformer2DModel", "hidden_states", (_TEXT, _IDS), _FLUX2, grid="ids"),
    Family(
        denoiser="Flux3Transformer2DModel",
        latents="hidden_states",
        text=(_TEXT, _IDS),
        attention=(TextAttention("txt_mode_blocks.*.attn", "text"), *_FLUX),
        grid="ids",
    ),
    Family(
        denoiser="ChromaTransformer2DModel",
        latents="hidden_states",
        text=(_TEXT, _IDS, TextInput("attention_mask", axis=1, kind="mask", text="first")),
        attention=_FLUX,
        grid="ids",
    ),
    Family("BriaTransformer2DModel", "hidden_states", (_TEXT, _IDS), _FLUX, grid="ids"),
    Family("LongCatImageTransformer2DModel", "hidden_states", (_TEXT, _IDS), _FLUX, grid="ids"),
    Family("OvisImageTransformer2DModel", "hidden_states", (_TEXT, _IDS), _FLUX, grid="ids"),
    Family(
        denoiser="AuraFlowTransformer2DModel",
        latents="hidden_states",
        text=(_TEXT,),
        attention=(
            TextAttention("joint_transformer_blocks.*.attn", "joint", offset=8),  # behind eight register tokens
            TextAttention("single_transformer_blocks.*.attn", "joint", offset=8),
        ),
        grid="patches",
    ),
    Family("CogView3PlusTransformer2DModel", "hidden_states", (_TEXT,), _ATTN1, grid="patches"),
    Family(
        denoiser="CogView4Transformer2DModel",
        latents="hidden_states",
        text=(_TEXT, TextInput("attention_mask", axis=1, kind="mask")),
        attention=_ATTN1,
        grid="patches",
    ),
    Family(
        denoiser="GlmImageTransformer2DModel",
        latents="hidden_states",
        text=(_TEXT, TextInput("attention_mask", axis=1, kind="mask")),
        attention=_ATTN1,
        grid="patches",
    ),
    Family(
        denoiser="JoyImageEditTransformer3DModel",
        latents="hidden_states",
        text=(_TEXT,),
        attention=(TextAttention("double_blocks.*.attn", "joint", text="last"),),
        grid="patches",
    ),
    Family(
        denoiser="JoyImageEditPlusTransformer3DModel",
        latents="hidden_states",
        text=(_TEXT, TextInput("encoder_hidden_states_mask", axis=1, kind="mask")),
        attention=(TextAttention("double_blocks.*.attn", "joint", text="last"),),
        grid="shapes",
        grid_from="shape_list",
    ),
    Family(
        denoiser="MotifVideoTransformer3DModel",
        latents="hidden_states",
        text=(_TEXT, TextInput("encoder_attention_mask", axis=1, kind="mask")),
        attention=(
            TextAttention("transformer_blocks.*.attn", "joint", text="last"),
            TextAttention("single_transformer_blocks.*.attn", "joint", text="last", except_last="num_decoder_layers"),
            TextAttention("*.cross_attn", "cross"),
        ),
        grid="patches",
        video=True,
    ),
    Family(
        denoiser="Krea2Transformer2DModel",
        latents="hidden_states",
        text=(
            _TEXT,
            TextInput("encoder_attention_mask", axis=1, kind="mask"),
            TextInput("position_ids", axis=0, kind="positions", text="first"),
        ),
        attention=(
            TextAttention("text_fusion.refiner_blocks.*.attn", "text"),
            TextAttention("transformer_blocks.*.attn", "joint"),
        ),
        grid="ids",
        grid_from="position_ids",
    ),
    Family(
        denoiser="PRXTransformer2DModel",
        latents="hidden_states",
        text=(_TEXT, TextInput("attention_mask", axis=1, kind="mask")),
        attention=(TextAttention("blocks.*.attention", "hybrid"),),
        grid="patches",
    ),
)
