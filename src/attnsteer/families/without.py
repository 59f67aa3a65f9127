"""Denoiser classes of diffusers without a row, and why."""

from collections.abc import Mapping

_AUDIO = "makes audio"
_NO_TEXT = "reads no text"
_PART = "a building block of other denoisers"
_OLD = "deprecated in diffusers"

WITHOUT_ROW: Mapping[str, str] = {
    "AceStepTransformer1DModel": _AUDIO,
    "LongCatAudioDiTTransformer": _AUDIO,
    "MiniMaxMusic3RVQDepthDecoder": _AUDIO,
    "MiniMaxMusic3Transformer1DModel": _AUDIO,
    "StableAudio3DiTModel": _AUDIO,
    "StableAudioDiTModel": _AUDIO,
    "T5FilmDecoder": _AUDIO,
    "UNet1DModel": _AUDIO,
    "DiTTransformer2DModel": _NO_TEXT,
    "Kandinsky6SRTransformer3DModel": _NO_TEXT,
    "RFD4ProteinaTransformer": "makes proteins",
    "UNet2DModel": _NO_TEXT,
    "UNetSpatioTemporalConditionModel": _NO_TEXT,
    "DreamLiteTransformer2DModel": _PART,
    "MotionAdapter": _PART,
    "Transformer2DModel": _PART,
    "TransformerTemporalModel": _PART,
    "I2VGenXLUNet": _OLD,
    "UVit2DModel": _OLD,
    "AnyFlowFARTransformer3DModel": "not yet: keeps keys and values of earlier frames from call to call",
    "BriaFibo2Transformer2DModel": "not yet: two text streams of different length, one of them made inside",
    "Cosmos3OmniTransformer": "not yet: packs all rows into one sequence, with causal attention over the text",
    "Ideogram4Transformer2DModel": "not yet: text and image share one padded sequence, told apart by a list of roles",
    "MiniMaxH3Transformer3DModel": "not yet: no pipeline; tokens are placed by lists of indices",
    "PriorTransformer": "makes an image embedding, no picture",
    "QwenImage21Transformer2DModel": "not yet: computes the text once and keeps its keys and values",
    "WanAnimate2Transformer3DModel": "not yet: keeps keys and values of the reference from call to call",
}
