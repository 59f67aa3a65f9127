"""What a detector is, and detectors by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from PIL import Image

from attnsteer.evaluate.scoring.boxes import Box

EXAMINER: Final = "vlm"
"""The name of what answers questions about a picture instead of finding things in it."""
SHAPES_CLIPS: Final = "shapes-clips"
"""The name of what judges whole clips of the shapes world."""
NAMES: Final = {
    "mask2former": "facebook/mask2former-swin-small-coco-instance",
    "owlv2": "google/owlv2-base-patch16-ensemble",
    "owlvit": "google/owlvit-base-patch32",
    "grounding-dino": "IDEA-Research/grounding-dino-tiny",
    "clipseg": "CIDAS/clipseg-rd64-refined",
    EXAMINER: "llava-hf/llava-v1.6-mistral-7b-hf",
    "shapes": "",
    SHAPES_CLIPS: "",
}
"""Names, and the models they stand for on the Hub.

"owlvit" is VISOR's detector, "clipseg" that of the published multi-relation figures; "vlm" judges presence only,
"shapes-clips" whole clips only.
"""


class Detector(Protocol):
    """Finds objects in pictures.

    Attributes:
        name: Printed beside every figure; says which weights.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    def __call__(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Box]]:
        """Boxes in pixels for each picture, thresholds applied; labels are those asked for, or the detector's own.

        Args:
            pictures: Any sizes.
            labels: What to look for in each picture. A detector with a fixed vocabulary reports that instead.
        """
        ...


@dataclass(frozen=True)
class Answers:
    """What an examiner says of a picture, each 0 to 1.

    Attributes:
        kept: Certainty that the subject is there.
        absent: Certainty that the unwanted thing is not.
        quality: How good it is as a picture.
    """

    kept: float
    absent: float
    quality: float


@runtime_checkable
class Examiner(Protocol):
    """Judges pictures of negative prompts by answering questions, without saying where things are.

    Attributes:
        name: As of a detector.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def quality_name(self) -> str: ...  # noqa: D102

    def examine(self, picture: Image.Image, prompt: str, asked: Mapping[str, Any]) -> Answers:
        """Judge a picture drawn from `prompt`; `asked` as in tasks of the suite `negatives`."""
        ...


@runtime_checkable
class ClipExaminer(Protocol):
    """Judges whole clips of negative prompts, because what is unwanted may be a behaviour that no frame shows alone.

    Attributes:
        name: As of a detector.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def quality_name(self) -> str: ...  # noqa: D102

    def examine_clip(self, frames: Sequence[Image.Image], prompt: str, asked: Mapping[str, Any]) -> Answers:
        """Judge a clip drawn from `prompt`; `asked` as in tasks of the suite `shapes-clip-negatives`."""
        ...


def detector_kind(name: str) -> str:
    """The part of a detector's name before its model.

    Raises: ValueError for an unknown one.
    """
    kind = name.partition(":")[0]
    if kind not in NAMES:
        raise ValueError(f"detector must be one of {', '.join(NAMES)}, or NAME:MODEL, got {name!r}")
    return kind


def make_detector(name: str, device: str = "cpu") -> Detector | Examiner | ClipExaminer:
    """A detector or examiner by name, or "NAME:MODEL" for other weights of its kind (a folder or Hub id).

    Args:
        name: E.g. "mask2former", "owlv2:google/owlv2-large-patch14-ensemble", "shapes".
        device: A torch device.

    Raises: ValueError for an unknown name; OSError if the weights cannot be had.
    """
    kind, model = detector_kind(name), name.partition(":")[2]
    if kind == "shapes":
        from attnsteer.evaluate.detectors.shapes import ShapesDetector

        return ShapesDetector()
    if kind == SHAPES_CLIPS:
        from attnsteer.evaluate.detectors.shapes_clips import ShapesClipExaminer

        return ShapesClipExaminer()
    made: Detector | Examiner = _detector_class(kind).load(model or NAMES[kind], device)
    return made


def _detector_class(kind: str) -> Any:
    if kind == "mask2former":
        from attnsteer.evaluate.detectors.mask2former import Mask2Former

        return Mask2Former
    if kind == EXAMINER:
        from attnsteer.evaluate.detectors.vision_language import VisionLanguageModel

        return VisionLanguageModel
    if kind == "clipseg":
        from attnsteer.evaluate.detectors.clipseg import ClipSeg

        return ClipSeg
    from attnsteer.evaluate.detectors.open_vocabulary import GroundingDino, Owl

    return GroundingDino if kind == "grounding-dino" else Owl
