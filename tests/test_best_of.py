"""Best-of-N, by the steering objective and by a score of finished pictures."""

import pytest
import torch

from attnsteer import guide
from attnsteer.evaluate.methods import parse_methods
from attnsteer.steering.best_of import best_of_by_objective, best_of_by_score
from attnsteer.steering.select import with_seed
from steered import PROMPT, generate, pointed
from test_trials import OTHER, seed, steering
from tiny import CALLS


def call(**options):
    return {**CALLS["sd"], "guidance_scale": 1.0, "prompt": [PROMPT, OTHER], **options}


def test_the_objective_chooses_a_stock_picture():
    pipe = pointed("sd")
    guided = guide(pipe, best_of_by_objective(steering((0.1,), (0.4,), (0.95,), (0.2,)), 4))
    result = generate(guided, "sd", generator=seed(3), num_inference_steps=4)
    chosen = with_seed({"generator": seed(3)}, 2)["generator"]
    assert torch.equal(result, generate(pipe, "sd", generator=chosen, num_inference_steps=4))
    report = guided.steering_report
    assert report.seeds == (2,) and [t.steps[0].step_index for t in report.trials] == [2] * 4
    assert report.iterations == 4  # judged once each, and never moved


def test_a_score_chooses_picture_by_picture():
    pipe, answers = pointed("sd"), [[0.1, 0.9], [0.5, 0.9], [0.3, 0.95]]
    scores = iter(answers)
    output, told = best_of_by_score(pipe, lambda pictures: next(scores), 3, **call(generator=[seed(1), seed(2)]))
    assert told == answers
    calls = [call(generator=[seed(1), seed(2)])]
    calls += [with_seed(call(generator=[seed(1), seed(2)]), number) for number in (1, 2)]
    pictures = [pipe(**each).images for each in calls]
    assert torch.equal(output.images[0], pictures[1][0]) and torch.equal(output.images[1], pictures[2][1])


def test_one_candidate_is_the_call_itself():
    pipe = pointed("sd")
    output, _ = best_of_by_score(pipe, lambda pictures: [0.0, 0.0], 1, **call(generator=seed(1), return_dict=False))
    assert torch.equal(output[0], pipe(**call(generator=seed(1))).images)


def test_requests_without_sense_are_errors():
    with pytest.raises(ValueError, match="candidates must be >= 1"):
        best_of_by_score(pointed("sd"), len, 0, **call())
    with pytest.raises(ValueError, match="got 1 scores for 2 pictures"):
        best_of_by_score(pointed("sd"), lambda pictures: [0.0], 2, **call())
    with pytest.raises(ValueError, match="candidates must be >= 2"):
        best_of_by_objective(steering(), 1)


def test_methods_of_an_evaluation():
    (method,) = parse_methods("best-of-3-by-classifier")
    assert (method.steer, method.candidates, method.best_of) == (True, 3, 1)
    assert method.title == "Best of 3 by classifier"
    (method,) = parse_methods("steer-3")
    assert (method.steer, method.attempts, method.picks, method.title) == (True, 3, False, "Steered, 3 attempts")
    for name in ("best-of-1-by-classifier", "steer-1", "steer-3-by-classifier"):
        with pytest.raises(ValueError, match="N >= 2"):
            parse_methods(name)
    assert [each.name for each in parse_methods("none,best-of-equal")] == ["none", "best-of-equal"]
