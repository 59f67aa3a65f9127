"""Every pipeline of the registry: steered latents reach denoiser and scheduler alike, or an error says why not."""

import inspect
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from attnsteer import guide
from attnsteer.changes import Attribute, applied, wrap_scheduler_step
from attnsteer.steering.descent import LeanRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.recording import Recording
from pipelines.registry import ENTRIES
from pipelines.subject import Subject, deviation
from steered import Spy

pytestmark = pytest.mark.filterwarnings("ignore")  # of stock pipelines; what the library warns of has other tests

_CONNECTOR = "changes what its text encoder gives"
_GIVEN_FRAMES = "mixes other latents in, such as given frames"
_CONVERTED = "of the latents too \\(it converts the prediction\\)"
_OWN_STEPS = "without calling the step of its scheduler"
_NO_ENCODER = "no text encoder of the pipeline ran"
_NO_PICTURE = "do not form a picture"
REFUSED = {
    "AnyFlowFARPipeline": "keeps keys and values of earlier frames",
    "BriaFibo2Pipeline": f"{_CONNECTOR}|lies beyond",
    "Cosmos2TextToImagePipeline": _CONVERTED,
    "Cosmos3OmniPipeline": _NO_ENCODER,
    "CosmosTextToWorldPipeline": "several scheduler steps from one denoiser call|pull-back of its own",
    "CosmosVideoToWorldPipeline": f"{_GIVEN_FRAMES}|does not repeat",
    "Cosmos2VideoToWorldPipeline": _GIVEN_FRAMES,
    "Ideogram4Pipeline": _NO_ENCODER,
    "JoyImageEditPipeline": _NO_PICTURE,
    "Kandinsky5I2VPipeline": "are not latents",
    "LTX2Pipeline": _CONNECTOR,
    "LTX2ConditionPipeline": _CONNECTOR,
    "LTX2DFRPipeline": _CONNECTOR,
    "LTX2HDRPipeline": _CONNECTOR,
    "LTX2InContextPipeline": _CONNECTOR,
    "LTXConditionPipeline": "where its tokens lie one by one",
    "LTXI2VLongMultiPromptPipeline": _NO_PICTURE,
    "PRXPixelPipeline": _CONVERTED,
    "SanaSprintPipeline": _CONVERTED,
    "SanaSprintImg2ImgPipeline": _CONVERTED,
    "SanaImageToVideoPipeline": "are not latents",
    "SanaWMPipeline": "pull-back of its own",
    "SkyReelsV2DiffusionForcingPipeline": _OWN_STEPS,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": _OWN_STEPS,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": _OWN_STEPS,
    "ZImageOmniPipeline": "gets reference pictures beside the noisy one",
    "StableCascadePriorPipeline": "has no attention maps",
    "StableCascadeDecoderPipeline": "has no attention maps",
    "StableCascadeCombinedPipeline": "has no attention maps",
}
# Prompts that are JSON name none in words; a text encoder that reads lettering alone gets it in quotes.
NO_RELATION = {"BriaFiboEditPipeline", "GlmImagePipeline"}
# Words need more tokens here: these put a template ahead of the prompt and keep its end.
LONGER = [name for name in ENTRIES if name.startswith(("Sana", "JoyImage"))]
# A ControlNet looks at the latents before they move. Others join more to their first latents, or scale them behind.
ELSEWHERE = {name for name in ENTRIES if "ControlNet" in name} | {
    "AnyFlowPipeline",
    "HeliosPyramidPipeline",
    "Kandinsky5I2IPipeline",
    "LTXImageToVideoPipeline",
}
COARSE = {"LDMTextToImagePipeline"}  # its decoder rounds latents to a codebook


@pytest.fixture(scope="module", params=sorted(ENTRIES))
def subject(request):
    chosen = Subject(request.param)
    chosen.call = {**chosen.call, **({"max_sequence_length": 300} if request.param in LONGER else {})}
    return chosen


def steering(name):
    rule = LeanRule(iterations=1, probability=None, step_size=0.9 if name in COARSE else 0.1)
    return LearnedSteering(Spy(), rule=rule, recording=Recording(size=4))


@contextmanager
def samples_of(pipe):
    """Collects what the scheduler steps from."""
    seen = []

    def see(step, *args, **kwargs):
        seen.append(inspect.signature(step).bind(*args, **kwargs).arguments["sample"].clone())
        return step(*args, **kwargs)

    with wrap_scheduler_step(pipe.scheduler, see):
        yield seen


@contextmanager
def beginning_with(pipe, plain, moved):
    """Lets the pipeline begin with moved latents instead of its own; yields whether it made such as `plain`."""
    found, prepare = [], pipe.prepare_latents

    def prepared(*args, **kwargs):
        result = prepare(*args, **kwargs)
        entries = list(result) if isinstance(result, tuple) else [result]
        if not found and isinstance(entries[0], Tensor) and torch.equal(entries[0].squeeze(), plain.squeeze()):
            found.append(True)
            entries[0] = moved.reshape(entries[0].shape)
        return tuple(entries) if isinstance(result, tuple) else entries[0]

    with applied([Attribute(pipe, "prepare_latents", prepared)]):
        yield found


def test_steering_moves_the_latents_that_the_pipeline_goes_on_with(subject):
    """Steered ahead of the first step is the same as a stock run that begins with the moved latents."""
    pipe, mode, name = subject.pipe, subject.modes[-1], subject.name
    guided = guide(pipe, steering(name))
    with samples_of(pipe) as own:
        plain = subject.run(pipe, **mode)
    before = subject.state()
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            subject.run(guided, **mode)
        assert subject.state() == before
        return
    with samples_of(pipe) as moved:
        result = subject.run(guided, **mode)
    assert subject.state() == before
    if name in NO_RELATION:
        assert guided.steering_report is None and torch.equal(result, plain)
        return
    assert len(guided.steering_report.steps) >= 1
    assert deviation(result, plain) > 1e-4 and not torch.equal(moved[0], own[0])
    if name in ELSEWHERE or not hasattr(pipe, "prepare_latents"):
        return
    with beginning_with(pipe, own[0], moved[0]) as found:
        expected = subject.run(pipe, **mode)
    assert found
    assert deviation(result, expected) < 1e-3


def test_nearly_all_pipelines_can_be_steered():
    assert {*REFUSED, *NO_RELATION, *ELSEWHERE} <= set(ENTRIES)
    assert len(set(ENTRIES) - {*REFUSED, *NO_RELATION}) >= 165
