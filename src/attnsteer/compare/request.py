"""What is to be generated: one frozen record that the command line, Python, a server and a PNG file share."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from attnsteer import __version__
from attnsteer.compare.settings import PictureSettings

if TYPE_CHECKING:
    from attnsteer.steering.relations import Relation

SCHEMA: Final = 1
DTYPES: Final = ("auto", "float32", "float16", "bfloat16")
STEERING: Final = ("auto", "on", "off")


class RequestError(ValueError):
    """A request that cannot be honoured as it stands; the message says what to change."""


@dataclass(frozen=True)
class Request(PictureSettings):
    """A picture to be made.

    Attributes:
        prompt: What to show.
        negative: What must not be seen (normalized attention guidance), or several texts with weights, such as
            {"blurry": 1.0, "text": 0.5}; None or "" switches that method off.
        model: Name of an embedded model, a diffusers folder, or an id on the Hub.
        classifier: Folder, Hub id or published .pth of a relation classifier; None means the model's own.
        steer: "auto" steers if the prompt names a relation and there is a classifier; "on" insists; "off" never does.
        seed: Of the first picture, 0..2^63-1; the following ones count up from it.
        num_images: Pictures, >= 1.
        seeds: Seeds that begin each picture, >= 2, of which the classifier chooses one to be steered; None is off.
        best_of: Seeds of which the classifier chooses the best picture, >= 2, without steering it; None is off.
        verify: Whether pictures are drawn plainly first, and steered only if the classifier finds them wrong.
        attempts: Seeds that are steered in turn, >= 2, until the classifier finds a picture right; None is off.
        others: See `PictureSettings`.
    """

    prompt: str
    negative: str | Mapping[str, float] | None = None
    model: str = "shapes-unet"
    classifier: str | None = None
    steer: Literal["auto", "on", "off"] = "auto"
    seed: int = 0
    num_images: int = 1
    seeds: int | None = None
    best_of: int | None = None
    verify: bool = False
    attempts: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise RequestError("the prompt is empty; say what to show")
        _check("classifier", self.classifier, lambda value: isinstance(value, str), "text")
        _check("negative", self.negative, _negative, "text, or texts with weights >= 0")
        _check("model", self.model or None, lambda value: isinstance(value, str), "a name, folder or Hub id")
        _check("steer", self.steer, lambda value: value in STEERING, " or ".join(STEERING))
        _check("dtype", self.dtype, lambda value: value in DTYPES, " or ".join(DTYPES))
        _check("seed", self.seed, lambda value: _whole(value) and 0 <= value < 2**63, "a whole number in 0..2^63-1")
        for name in ("steps", "width", "height", "frames", "num_images"):
            _check(name, getattr(self, name), lambda value: _whole(value) and value >= 1, "a whole number >= 1")
        for name in ("seeds", "best_of", "attempts"):
            _check(name, getattr(self, name), lambda value: _whole(value) and value >= 2, "a whole number >= 2")
        _check("verify", self.verify, lambda value: isinstance(value, bool), "true or false")
        if self.best_of is not None and (self.seeds is not None or self.verify or self.attempts is not None):
            raise RequestError("best_of draws without steering: leave seeds, verify and attempts out, or best_of")
        for name, low, high in _RANGES:
            _check(
                name,
                getattr(self, name),
                lambda value, low=low, high=high: _number(value) and low <= value <= high,
                f"in {low:g}..{high:g}" if math.isfinite(high) else f">= {low:g}",
            )
        start, end = self.nag_start or 0.0, 1.0 if self.nag_end is None else self.nag_end
        if start >= end:
            raise RequestError(f"nag_start must be below nag_end, got {start:g} and {end:g}; 0 and 1 guide every step")

    @property
    def text(self) -> str:
        """The prompt as the model reads it: without the markup of explicit relations, `[dog]{right of}[cat]`.

        Raises: RequestError if the markup names an unknown relation.
        """
        from attnsteer.steering.relations import strip_markup

        try:
            return strip_markup(self.prompt).text
        except ValueError as error:
            raise RequestError(str(error)) from error

    @property
    def relations(self) -> "tuple[Relation, ...]":
        """The relations of the prompt, with offsets into `text`: those of its markup, else those it names in words.

        Raises: RequestError if the markup names an unknown relation.
        """
        from attnsteer.steering.relations import parse_relations, strip_markup

        text = self.text
        return strip_markup(self.prompt).relations or tuple(parse_relations(text))

    @property
    def tries(self) -> bool:
        """Whether a picture takes more than one run of the pipeline: seeds, best_of, verify or attempts."""
        return self.verify or any(count is not None for count in (self.seeds, self.best_of, self.attempts))

    @property
    def negative_text(self) -> str:
        """The negative prompt in one line, for people: "blurry" or "blurry, text (0.5)"."""
        if not isinstance(self.negative, Mapping):
            return self.negative or ""
        weighted = (text if weight == 1 else f"{text} ({weight:g})" for text, weight in self.negative.items())
        return ", ".join(weighted)

    @property
    def guides(self) -> bool:
        """Whether negative guidance would change anything: a negative prompt, scale not 1, alpha not 0."""
        return bool(self.negative) and self.nag_scale != 1 and self.nag_alpha != 0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form that goes into PNG files."""
        return {"schema": SCHEMA, "attnsteer": __version__, "prompt": self.prompt, **asdict(self)}

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> "Request":
        """Read what `to_dict` wrote.

        Raises: RequestError for a newer schema, an unknown setting or a bad value: nothing is dropped silently.
        """
        given = {name: value for name, value in settings.items() if name not in ("schema", "attnsteer")}
        if settings.get("schema") != SCHEMA:
            raise RequestError(
                f"settings of schema {settings.get('schema')!r}; this version reads schema {SCHEMA}: update attnsteer"
            )
        unknown = sorted(set(given) - {item.name for item in fields(Request)})
        if unknown or "prompt" not in given:
            raise RequestError(f"unknown settings {unknown}" if unknown else "the settings hold no prompt")
        return Request(**given)

    def parameters_text(self) -> str:
        """Return the settings as the text that image browsers know from the Stable Diffusion web UI."""
        named = {
            "Steps": self.steps,
            "CFG scale": self.guidance_scale,
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}" if self.width and self.height else None,
            "Frames": self.frames,
            "Model": self.model,
            "NAG scale": self.nag_scale if self.negative else None,
            "NAG tau": self.nag_tau if self.negative else None,
            "NAG alpha": self.nag_alpha if self.negative else None,
            "Steering": self.steer,
            "Seeds tried": self.seeds or self.best_of,
            "Verified": self.verify or None,
            "Attempts": self.attempts,
            "Version": f"attnsteer {__version__}",
        }
        lines = [self.prompt]
        if self.negative:
            lines.append(f"Negative prompt: {self.negative_text}")
        lines.append(", ".join(f"{name}: {_plain(value)}" for name, value in named.items() if value is not None))
        return "\n".join(lines)


_RANGES: Final = (
    ("guidance_scale", 0.0, math.inf),
    ("nag_scale", 1.0, math.inf),
    ("nag_tau", 1.0, math.inf),
    ("nag_alpha", 0.0, 1.0),
    ("nag_start", 0.0, 1.0),
    ("nag_end", 0.0, 1.0),
)


def _negative(value: object) -> bool:
    if not isinstance(value, Mapping):
        return isinstance(value, str)
    return bool(value) and all(isinstance(text, str) and _number(w) and w >= 0 for text, w in value.items())


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check(name: str, value: Any, right: Any, wanted: str) -> None:
    if value is not None and not right(value):
        raise RequestError(f"{name} must be {wanted}, got {value!r}")
