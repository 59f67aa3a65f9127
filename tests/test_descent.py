"""The two rules that move latents downhill, on losses with closed forms."""

import math

import pytest
import torch

from attnsteer.steering.descent import Judgement, LeanRule, PublishedRule


def bowl(minimum, curvature=1.0):
    """One relation with L = curvature / 2 |x - minimum|^2 and p = exp(-L)."""

    def judge(x, rows=None):
        here = minimum if rows is None or len(minimum) == 1 else minimum[rows]
        loss = curvature / 2 * (x - here).flatten(1).square().sum(dim=1, keepdim=True)
        return Judgement(loss, (-loss).exp(), torch.ones_like(loss, dtype=torch.bool))

    return judge


class Counted:
    """A judge that keeps the points it was asked about, and of which rows."""

    def __init__(self, judge):
        self.judge, self.points, self.rows = judge, [], []

    def __call__(self, x, rows=None):
        self.points.append(x.detach().clone())
        self.rows.append(list(range(len(x))) if rows is None else rows.tolist())
        return self.judge(x, rows)


def angle(first, second):
    first, second = first.flatten(1).double(), second.flatten(1).double()
    return torch.acos((torch.cosine_similarity(first, second)).clamp(-1, 1))


def test_one_lean_step_has_the_closed_form():
    x, minimum = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    result = LeanRule(iterations=1, step_size=0.1)(bowl(minimum), x, 0)
    for row in range(2):
        gradient = x[row] - minimum[row]
        moved = x[row] - 0.1 * x[row].norm() * gradient / gradient.norm()
        torch.testing.assert_close(result.latents[row], moved * x[row].norm() / moved.norm())
    assert result.iterations == 1
    loss = 0.5 * (x - minimum).square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(result.before, (-loss).exp())
    torch.testing.assert_close(result.after, result.before)


def test_without_keep_norm_the_step_has_its_length():
    x = torch.randn(3, 10)
    rule = LeanRule(iterations=1, step_size=0.25, keep_norm=False)
    step = rule(bowl(torch.zeros(3, 10)), x, 0).latents - x
    torch.testing.assert_close(step.norm(dim=1), 0.25 * x.norm(dim=1))


def test_lean_descent_lowers_the_loss_and_keeps_the_norm():
    torch.manual_seed(1)
    x = torch.randn(4, 50)
    minimum = torch.randn(4, 50)
    minimum *= x.norm(dim=1, keepdim=True) / minimum.norm(dim=1, keepdim=True)  # on the shell, so it can be reached
    judge = Counted(bowl(minimum, 0.01))
    result = LeanRule(iterations=40, step_size=0.1, probability=0.999)(judge, x, 0)
    assert (
        0.005 * (result.latents - minimum).square().sum(dim=1) < 0.02 * 0.005 * (x - minimum).square().sum(1)
    ).all()
    for point, rows in zip(judge.points, judge.rows, strict=True):
        torch.testing.assert_close(point.norm(dim=1), x[rows].norm(dim=1))
    assert (angle(result.latents, minimum) < 0.1).all()


def test_backtracking_halves_the_step_after_a_rise():
    """On L = |x - m| from near the minimum a long step overshoots: it is taken back, and tried at half the length."""
    x = torch.tensor([[1.0, 0.0]])
    minimum = torch.tensor([[1.0, 0.05]])
    judge = Counted(bowl(minimum, 2.0))
    rule = LeanRule(iterations=4, step_size=0.4, probability=0.9999999, keep_norm=False)
    rule(judge, x, 0)
    steps = [point[0, 1].item() for point in judge.points]
    assert steps == pytest.approx([0.0, 0.4, 0.2, 0.1])
    plain = Counted(bowl(minimum, 2.0))
    LeanRule(iterations=3, step_size=0.4, probability=0.9999999, keep_norm=False, backtracking=False)(plain, x, 0)
    assert [point[0, 1].item() for point in plain.points] == pytest.approx([0.0, 0.4, 0.0])


def test_lean_ends_at_the_best_point_not_at_a_rejected_one():
    x, minimum = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.1]])
    judge = Counted(bowl(minimum, 2.0))
    result = LeanRule(iterations=2, step_size=0.4, probability=0.9999999, keep_norm=False)(judge, x, 0)
    # (1, 0.4) was worse than (1, 0), so the last move starts from (1, 0) with half the length
    torch.testing.assert_close(result.latents, torch.tensor([[1.0, 0.2]]))


def test_satisfied_rows_do_not_move_by_a_bit_and_end_the_descent():
    x = torch.randn(3, 7) * 3.7
    judge = Counted(bowl(x.clone(), 1.0))
    result = LeanRule(probability=0.5)(judge, x, 0)
    assert torch.equal(result.latents, x) and result.iterations == 1
    minimum = x.clone()
    minimum[1] += 5.0
    mixed = LeanRule(probability=0.5, iterations=3)(bowl(minimum), x, 0)
    assert mixed.iterations == 3
    assert torch.equal(mixed.latents[[0, 2]], x[[0, 2]]) and not torch.equal(mixed.latents[1], x[1])


def test_a_row_stops_once_its_least_probable_relation_is_probable_enough():
    def judge(x, rows=None):
        """Two relations: p = x_0 and p = x_1, by the losses -log p."""
        losses = -x[:, :2].log()
        return Judgement(losses, x[:, :2], torch.ones_like(losses, dtype=torch.bool))

    x = torch.tensor([[0.95, 0.5, 0.9], [0.92, 0.93, 0.9]])
    judged = Counted(judge)
    result = LeanRule(probability=0.9, iterations=30, step_size=0.05)(judged, x, 0)
    torch.testing.assert_close(result.before, torch.tensor([0.5, 0.92]))
    assert result.iterations < 30 and (result.after >= 0.9).all()
    assert torch.equal(result.latents[:1], judged.points[-1])
    assert torch.equal(result.latents[1], x[1])
    assert judged.rows[0] == [0, 1] and all(rows == [0] for rows in judged.rows[1:])


def test_the_worst_relation_alone_gives_the_gradient():
    def judge(x, rows=None):
        losses = torch.stack([x[:, 0], 2 * x[:, 1]], dim=1)
        return Judgement(losses, torch.zeros_like(losses), torch.ones_like(losses, dtype=torch.bool))

    x = torch.tensor([[1.0, 1.0]])
    rule = LeanRule(iterations=1, step_size=0.1, keep_norm=False, joint="worst")
    torch.testing.assert_close(rule(judge, x, 0).latents, torch.tensor([[1.0, 1.0 - 0.1 * math.sqrt(2)]]))
    both = LeanRule(iterations=1, step_size=0.1, keep_norm=False)(judge, x, 0).latents
    torch.testing.assert_close(both - x, -0.1 * math.sqrt(2) * torch.tensor([[1.0, 2.0]]) / math.sqrt(5))


def test_relations_can_take_turns_in_the_lean_rule():
    """L_k = k x_k^2 / 2 by turns: the first step is along the first axis, the second along the second."""
    x = torch.tensor([[1.0, 1.0]])

    def judge(point, rows=None):
        losses = 0.5 * torch.tensor([1.0, 2.0]) * point.square()
        return Judgement(losses, torch.zeros_like(losses), torch.ones_like(losses, dtype=torch.bool))

    rule = LeanRule(iterations=2, step_size=0.1, keep_norm=False, joint="alternate")
    length = 0.1 * math.sqrt(2)
    torch.testing.assert_close(rule(judge, x, 0).latents, torch.tensor([[1 - length, 1 - length]]))


def test_steps_can_have_the_length_of_the_gradient():
    x, minimum = torch.randn(2, 9), torch.randn(2, 9)
    rule = LeanRule(iterations=1, step_size=1.5, keep_norm=False, normalised=False)
    torch.testing.assert_close(rule(bowl(minimum, 0.2), x, 0).latents, x - 1.5 * 0.2 * (x - minimum))


def test_without_a_probability_all_iterations_are_used():
    x = torch.randn(2, 9)
    result = LeanRule(iterations=5, probability=None)(bowl(x + 1e-4), x, 0)
    assert result.iterations == 5 and result.after.min() > 0.999


def test_relations_a_row_does_not_have_do_not_move_it():
    def judge(x, rows=None):
        wanted = torch.tensor([[True, False], [True, True]])
        losses = torch.stack([x[:, 0], x[:, 1]], dim=1)
        return Judgement(losses, torch.zeros_like(losses).masked_fill(~wanted, 1.0), wanted)

    x = torch.ones(2, 2)
    moved = LeanRule(iterations=1, step_size=0.1, keep_norm=False)(judge, x, 0).latents
    assert moved[0, 1] == 1 and moved[1, 1] < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_latents_are_judged_in_their_own_type(dtype):
    x, minimum = torch.randn(2, 64).to(dtype), torch.randn(2, 64).to(dtype)
    seen = []

    def judge(point, rows=None):
        seen.append(point.dtype)
        return bowl(minimum, 0.01)(point, rows)

    for rule in (LeanRule(iterations=5, probability=0.999), PublishedRule(0.5, (1e-3,), 5)):
        result = rule(judge, x, 0)
        assert result.latents.dtype == dtype and result.iterations == 5
        before, after = (bowl(minimum, 0.01)(point).losses for point in (x, result.latents))
        assert (after < before).all()
    assert set(seen) == {dtype}
    still = LeanRule(probability=0.5)(bowl(x.clone()), x, 0).latents
    assert torch.equal(still, x)


def test_flat_losses_leave_the_latents_where_they_are():
    x = torch.randn(2, 5)
    flat = LeanRule(iterations=2)(lambda p, rows=None: bowl(torch.zeros(1))(p * 0 + 1), x, 0)
    torch.testing.assert_close(flat.latents, x)


@pytest.mark.parametrize("rule", [LeanRule(), PublishedRule()])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(rule, value):
    with pytest.raises(ValueError, match="not finite"):
        rule(bowl(torch.full((1, 4), value)), torch.randn(1, 4), 0)


def published_by_hand(losses_of, x, step_size, target, iterations, count, stop_at_first):
    """One row, as the paper's loop reads; `losses_of` gives the list of its relations' losses."""
    good_in_turn = 0
    for k in range(iterations):
        x = x.detach().requires_grad_()
        loss = losses_of(x)[k % count]
        if loss.item() <= target:
            good_in_turn += 1
            if stop_at_first or good_in_turn == count:
                break
            continue
        good_in_turn = 0
        x = x - step_size * torch.autograd.grad(loss, x)[0]
    return x.detach(), k + 1


def two_bowls(first, second, sharp=1.0):
    def losses_of(x):
        return [0.5 * (x - first).square().sum(), 0.5 * sharp * (x - second).square().sum()]

    return losses_of


def judge_rows(rows, counts):
    """A judge of a batch from one `losses_of` per row."""
    most = max(counts)

    def judge(x, chosen=None):
        padded = []
        asked = range(len(rows)) if chosen is None else chosen.tolist()
        for row, losses_of, count in zip(x, [rows[i] for i in asked], [counts[i] for i in asked], strict=True):
            padded.append(torch.stack([*losses_of(row)[:count], *[row.sum() * 0] * (most - count)]))
        losses = torch.stack(padded)
        wanted = torch.arange(most)[None] < torch.tensor([counts[i] for i in asked])[:, None]
        return Judgement(losses, (-losses).exp(), wanted)

    return judge


@pytest.mark.parametrize("stop_at_first", [False, True])
@pytest.mark.parametrize("step_index", [0, 1, 7])
def test_published_rule_is_the_published_loop(stop_at_first, step_index):
    torch.manual_seed(2)
    targets = (1e-3, 2e-2, 1.0)
    rule = PublishedRule(0.3, targets, 12, stop_at_first)
    target = targets[min(step_index, 2)]
    near = torch.randn(6)
    problems = [
        (two_bowls(near, near + 0.05), 2),  # both can be met
        (two_bowls(torch.zeros(6), torch.ones(6)), 2),  # they fight
        (two_bowls(torch.zeros(6), torch.zeros(6), 3.0), 1),
    ]
    x = torch.randn(3, 6)
    expected = [
        published_by_hand(losses_of, row, 0.3, target, 12, count, stop_at_first)
        for row, (losses_of, count) in zip(x, problems, strict=True)
    ]
    for row, (losses_of, count) in enumerate(problems):
        alone = rule(judge_rows([losses_of], [count]), x[row : row + 1], step_index)
        torch.testing.assert_close(alone.latents[0], expected[row][0])
        assert alone.iterations == expected[row][1]
    together = rule(judge_rows([p for p, _ in problems], [c for _, c in problems]), x, step_index)
    for row in range(3):
        torch.testing.assert_close(together.latents[row], expected[row][0])
    assert together.iterations == max(used for _, used in expected)


def test_published_stop_at_first_leaves_the_second_relation_alone():
    """The first relation is met from the start, the second never: the released code then does nothing at all."""
    x = torch.zeros(1, 4)
    problem = two_bowls(torch.zeros(4), torch.ones(4))
    released = PublishedRule(0.5, (1e-5,), 6, stop_at_first=True)(judge_rows([problem], [2]), x, 0)
    assert torch.equal(released.latents, x) and released.iterations == 1
    ours = PublishedRule(0.5, (1e-5,), 2)(judge_rows([problem], [2]), x, 0)
    torch.testing.assert_close(ours.latents, torch.full((1, 4), 0.5))


def test_published_row_that_is_done_stays_done_beside_one_that_is_not():
    done, busy = two_bowls(torch.zeros(4), torch.ones(4)), two_bowls(torch.ones(4) * 9, torch.ones(4) * 9)
    x = torch.zeros(2, 4)
    rule = PublishedRule(0.1, (1e-5,), 7, stop_at_first=True)
    result = rule(judge_rows([done, busy], [2, 2]), x, 0)
    assert torch.equal(result.latents[0], x[0])
    torch.testing.assert_close(result.latents[1], published_by_hand(busy, x[1], 0.1, 1e-5, 7, 2, True)[0])


@pytest.mark.parametrize("rule", [LeanRule(iterations=6, step_size=0.2), PublishedRule(0.2, (0.05, 0.1), 6)])
def test_batch_rows_do_not_depend_on_each_other(rule):
    torch.manual_seed(3)
    x, minimum = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    minimum[0] = x[0] + 0.1
    together = rule(bowl(minimum), x, 1)
    for row in range(2):
        alone = rule(bowl(minimum[row : row + 1]), x[row : row + 1], 1)
        torch.testing.assert_close(together.latents[row], alone.latents[0])
        torch.testing.assert_close(together.before[row], alone.before[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LeanRule(iterations=0), "iterations must be >= 1"),
        (lambda: LeanRule(step_size=1.0), "step_size is a fraction"),
        (lambda: LeanRule(probability=1.0), "probability must be in"),
        (lambda: LeanRule(joint="mean"), "joint must be"),
        (lambda: LeanRule(step_size=0.0, normalised=False), "step_size must be > 0"),
        (lambda: PublishedRule(step_size=0.0), "need step_size > 0"),
        (lambda: PublishedRule(loss_targets=()), "a loss target"),
    ],
)
def test_settings_out_of_range_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
