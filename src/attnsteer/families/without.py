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
    "PriorTransformer": "makes an image embedding; use its own negative_prompt with a guidance_scale above 1",
}
