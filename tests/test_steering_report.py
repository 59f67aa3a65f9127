"""Reports name the pictures they speak of: batches in which some prompts have relations, several pictures of each."""

import pytest
import torch

from attnsteer import guide
from attnsteer.steering.descent import LeanRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.objectives import CentroidObjective
from attnsteer.steering.recording import Recording
from attnsteer.steering.select import SeedSelection, with_seed
from attnsteer.steering.verify import Verification
from steered import CFG_ON, PROMPT, differs, generate, pointed
from test_trials import OTHER, seed, steering

# diffusers' own schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

PROMPTS = [PROMPT, "a bird", OTHER]
SIX = {"prompt": PROMPTS, "num_images_per_prompt": 2}  # pictures 0, 1, 4 and 5 have a relation


def seeds(count=6):
    return [seed(number) for number in range(count)]


@pytest.mark.parametrize(
    ("name", "cfg"), [("sd", True), ("sdxl", False), ("flux", True), ("sd3", False), ("wan", True)]
)
def test_rows_are_the_pictures_with_a_relation(name, cfg):
    """What the report says of a picture in a batch is what it says of the picture alone."""
    pipe = pointed(name)
    more = "num_videos_per_prompt" if name == "wan" else "num_images_per_prompt"
    options = dict(CFG_ON[name]) if cfg else {}
    method = LearnedSteering(
        CentroidObjective(), rule=LeanRule(iterations=2, step_size=0.05), recording=Recording(size=8)
    )
    guided = guide(pipe, method)
    several = {key: [value] * 3 if key == "negative_prompt" else value for key, value in options.items()}
    generate(guided, name, prompt=PROMPTS, generator=seeds(), **{more: 2}, **several)
    report = guided.steering_report
    assert (report.rows, report.per_prompt) == ((0, 1, 4, 5), 2)
    assert [len(relations) for relations in report.relations] == [1, 0, 1]
    (step,) = report.steps
    for place, row in enumerate(report.rows):
        generate(guided, name, prompt=PROMPTS[row // 2], generator=[seed(row)], **options)
        alone = guided.steering_report
        assert (alone.rows, alone.per_prompt) == ((0,), 1) and alone.relations == [report.relations[row // 2]]
        assert step.before[place] == pytest.approx(alone.steps[0].before[0], rel=1e-3, abs=1e-4)
        assert step.after[place] == pytest.approx(alone.steps[0].after[0], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("by", ["detector", "objective"])
def test_verification_names_what_was_drawn_again(by):
    pipe, verdicts = pointed("sd"), [True, False]
    verification = Verification(lambda pictures, relations: verdicts) if by == "detector" else Verification()
    guided = guide(pipe, steering(*([] if by == "detector" else [(0.9, 0.1)]), verify=verification))
    generate(guided, "sd", prompt=PROMPTS, generator=seeds(3))
    report = guided.steering_report
    assert report.rows == (2,) and [len(step.before) for step in report.steps] == [1]
    if by == "objective":
        assert report.trials[-1].rows == (0, 2) and report.verified == (pytest.approx(0.9), pytest.approx(0.1))
    assert str(report).startswith("picture 2: 'dog' above 'cat': probability ")


def test_verification_of_several_pictures_of_each_prompt():
    """The batch cannot be cut, so all of it is drawn again; the right ones come out as the stock pipeline's."""
    pipe = pointed("sd")
    guided = guide(pipe, steering((0.9, 0.1, 0.2, 0.9), verify=Verification()))
    plain = generate(pipe, "sd", generator=seeds(), **SIX)
    result = generate(guided, "sd", generator=seeds(), **SIX)
    report = guided.steering_report
    assert (report.rows, report.per_prompt, report.trials[-1].rows) == ((1, 4), 2, (0, 1, 4, 5))
    assert [row for row in range(6) if not torch.equal(result[row], plain[row])] == [1, 4]
    assert report.verified == pytest.approx((0.9, 0.1, 0.2, 0.9)) and len(report.steps[0].before) == 2
    lines = str(report).splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["picture 1", "picture 4"]


def test_seeds_and_verification_of_several_pictures_of_each_prompt():
    """Of two seeds each picture takes its better one; then the plain pictures are judged, and two are steered."""
    pipe = pointed("sd")
    answers = [(0.1, 0.8, 0.3, 0.2), (0.7, 0.2, 0.1, 0.6), (0.9, 0.9, 0.2, 0.3)]
    guided = guide(pipe, steering(*answers, seeds=SeedSelection(2), verify=Verification()))
    result = generate(guided, "sd", generator=seeds(), **SIX)
    report = guided.steering_report
    assert report.seeds == (1, 0, 0, 1) and report.trials[0].rows == (0, 1, 4, 5)
    assert report.rows == (4, 5) and report.verified == pytest.approx((0.9, 0.9, 0.2, 0.3))
    others = with_seed({"generator": seeds()}, 1)["generator"]
    chosen = [others[0], *seeds()[1:5], others[5]]
    plain = generate(pipe, "sd", generator=chosen, **SIX)
    assert [row for row in range(6) if not torch.equal(result[row], plain[row])] == [4, 5]


def test_one_generator_for_all_of_them():
    pipe = pointed("sd")
    guided = guide(pipe, steering((0.9, 0.9, 0.9, 0.1), verify=Verification()))
    plain, result = (generate(each, "sd", generator=seed(5), **SIX) for each in (pipe, guided))
    assert [row for row in range(6) if not torch.equal(result[row], plain[row])] == [5]
    assert guided.steering_report.rows == (5,)


def test_pictures_chosen_by_the_caller_are_judged_alone():
    pipe = pointed("sd")
    prompts, plain = [PROMPT, OTHER], generate(pipe, "sd", prompt=[PROMPT, OTHER], generator=seeds(2))
    for settings, answers in (
        ({}, []),
        ({"verify": Verification()}, [(0.1,)]),
        ({"verify": Verification(lambda pictures, relations: [False] * len(pictures))}, []),
        ({"seeds": SeedSelection(2)}, [(0.8,), (0.3,)]),
    ):
        guided = guide(pipe, steering(*answers, rows=(1,), **settings))
        result = generate(guided, "sd", prompt=prompts, generator=seeds(2))
        assert guided.steering_report.rows == (1,)
        assert torch.equal(result[0], plain[0]) and differs(result[1], plain[1])
    none = guide(pipe, steering(rows=(), verify=Verification(lambda pictures, relations: 1 / 0)))
    assert torch.equal(generate(none, "sd", prompt=prompts, generator=seeds(2)), plain)
    with pytest.raises(ValueError, match="rows must be pictures of the call, 0 to 1, got \\[2\\]"):
        generate(guide(pipe, steering(rows=(2,))), "sd", prompt=prompts)
