"""Every size and convention of a relation classifier, as plain data that goes into its config.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

Conditioning = Literal["index", "log_snr"]
Placement = Literal["none", "input", "layers", "output"]


@dataclass(frozen=True)
class EncoderSize:
    """Size of a pre-norm transformer encoder.

    Attributes:
        width: Features per token, even, a multiple of `heads`.
        layers: Number of encoder layers, >= 1.
        heads: Attention heads.
        feedforward: Hidden features of the two-layer network in each encoder layer.
    """

    width: int = 64
    layers: int = 2
    heads: int = 2
    feedforward: int = 128

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "feedforward"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.width % 2 or self.width % self.heads:
            raise ValueError(f"width must be even and a multiple of heads, got {self.width} with {self.heads} heads")


@dataclass(frozen=True)
class MapSource:
    """Where the attention maps come from: record them the same way when steering.

    Attributes:
        model_id: Hub id or folder of the base model, "" if unknown.
        revision: Its revision, if pinned.
        layers: Attention layers in channel order, named as the recorder names them; None means all of them.
        normalise: Whether each map is divided by its sum.
        text_length: Text tokens the maps' softmax ran over, padding included; None means the pipeline's own.
        timesteps: Step indices the classifier was trained on, ascending.
        num_steps: Number of inference steps these indices count in.
        orig_map_size: Side of the maps before they were resized; with FLUX, the picture's side divided by 16.
    """

    model_id: str = ""
    revision: str | None = None
    layers: tuple[str, ...] | None = None
    normalise: bool = False
    text_length: int | None = None
    timesteps: tuple[int, ...] = ()
    num_steps: int | None = None
    orig_map_size: int | None = None


@dataclass(frozen=True)
class LeanAdvice:
    """Settings of `LeanRule` that were found to suit the classifier's model; None leaves the rule's own default.

    Attributes:
        iterations: Most forward and backward passes per denoising step.
        step_size: Length of a step relative to the latents' norm.
        backtracking: Whether a step that raised the loss is taken back.
        presence: For `Retries`: peak of the map of an object that is there.
    """

    iterations: int | None = None
    step_size: float | None = None
    backtracking: bool | None = None
    presence: float | None = None

    def settings(self) -> dict[str, Any]:
        """Those of the rule that are given, by its names."""
        own = {"iterations": self.iterations, "step_size": self.step_size, "backtracking": self.backtracking}
        return {name: value for name, value in own.items() if value is not None}


@dataclass(frozen=True)
class ClassifierSettings:
    """Architecture of a `RelationClassifier`.

    Attributes:
        relations: Vocabulary; the order is the order of the logits.
        channels: Map channels (layers x heads).
        map_size: Side of the square maps, in cells.
        extractor: Encoder that condenses one object's maps, one token per channel.
        pooling_heads: Heads of the attention that pools the channels.
        head: Encoder that reads the two condensed maps.
        head_widths: Hidden features of the final MLP.
        head_timestep_width: Features of the noise level in the final MLP; 0 leaves it out.
        dropout: In [0, 1), active in training only.
        conditioning: "index" looks a step index up in a table, as published; "log_snr" embeds log(signal power /
            noise power) in nats, so that any step count and scheduler works.
        placement: Where the extractor adds the noise level: to its "input", ahead of each of its "layers" (published
            as "mid"), to its "output" before pooling, or nowhere ("none").
        num_timesteps: Rows of the index table; unused with "log_snr".
        fewer_channels: Accept maps with fewer channels than `channels`. Published checkpoints need it: their position
            table is longer than the maps of Stable Diffusion.
        antisymmetric: Average the logits with those of the exchanged objects, relations exchanged likewise, so that
            exchanging the objects exchanges left and right, above and below, exactly.
        standardise: Subtract a mean and divide by a deviation per channel, both measured on the training set.
        source: Where the maps come from.
        lean: How to steer with it best.
        window: Fractions of the steps from and to which to steer with it; None is from the first step that it was
            trained on to the last.
    """

    relations: tuple[str, ...]
    channels: int
    map_size: int = 16
    extractor: EncoderSize = field(default_factory=EncoderSize)
    pooling_heads: int = 2
    head: EncoderSize = field(default_factory=EncoderSize)
    head_widths: tuple[int, ...] = (256, 128)
    head_timestep_width: int = 16
    dropout: float = 0.3
    conditioning: Conditioning = "log_snr"
    placement: Placement = "layers"
    num_timesteps: int = 50
    fewer_channels: bool = False
    antisymmetric: bool = False
    standardise: bool = False
    source: MapSource = field(default_factory=MapSource)
    lean: LeanAdvice = field(default_factory=LeanAdvice)
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.relations) < 2 or len(set(self.relations)) != len(self.relations):
            raise ValueError(f"relations must be at least two distinct names, got {list(self.relations)}")
        for name, least in (("channels", 1), ("map_size", 2), ("head_timestep_width", 0), ("num_timesteps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}; the published value is 0.3")
        if self.extractor.width % self.pooling_heads:
            raise ValueError(f"extractor.width {self.extractor.width} must be a multiple of pooling_heads")
        for name, choices in (("conditioning", get_args(Conditioning)), ("placement", get_args(Placement))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain types only, ready for json.dump."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ClassifierSettings":
        """Rebuild settings from `to_json`'s output.

        Raises:
            ValueError: if a key is unknown (a newer version wrote it) or a required one is missing.
        """
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown settings {unknown}; this classifier needs a newer version of attnsteer")
        missing = sorted({"relations", "channels"} - set(data))
        if missing:
            raise ValueError(f"the config lacks {missing}; it is not the config.json of a relation classifier")
        values = dict(data)
        for name in ("relations", "head_widths", "window"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        for name in ("extractor", "head"):
            if name in values:
                values[name] = EncoderSize(**values[name])
        if "source" in values:
            source: dict[str, Any] = dict(values["source"])
            source.update({k: tuple(v) for k, v in source.items() if isinstance(v, list)})
            values["source"] = MapSource(**source)
        if "lean" in values:
            values["lean"] = LeanAdvice(**values["lean"])
        return cls(**values)
