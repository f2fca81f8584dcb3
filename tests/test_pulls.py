"""l2sp, weight_average, cpo, distill: numbers by numpy and by hand, neutral values."""

import numpy as np
import pytest
import torch
from conftest import assert_same_weights, make_loop, tiny_stream, weights
from test_text import loop_of, stream_of

import cl
from cl.errors import ClError
from cl.importance import values
from cl.models import build
from strategies.cpo import CPO, most_moved
from strategies.distill import Distill, at_tokens, distance
from strategies.l2sp import L2SP
from strategies.lwf import LwF
from strategies.naive import Naive
from strategies.weight_average import WeightAverage

NEUTRAL = [L2SP(lam=0, beta=0), WeightAverage(alpha=1), CPO(lam=0), Distill(lam=0)]
SIZES = (2, 1, 1)


def small():
    return build("mlp", (1, 8, 8), {"hidden": [5]})


def ran(*strategies, sizes=SIZES, model=small, **train):
    settings = {"epochs": 2, "lr": 0.05} | train
    loop = make_loop(list(strategies), tiny_stream(sizes=sizes), model=model, **settings)
    loop.run()
    return loop


def penalty(strategy, loop):
    """What `before_backward` adds for the weights as they are."""
    loop._loss, loop._loss_open = torch.zeros(()), True
    strategy.before_backward(loop)
    loop._loss_open = False
    return loop.loss


def moved(loop):
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in loop.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return numpy_of(values(loop.model))


def numpy_of(named):
    return {name: t.double().numpy() for name, t in named.items()}


class Look(Naive):
    """State at the start, before the head grows, and at the end of every experience."""

    def __init__(self):
        self.first, self.last = [], []

    def before_training_exp(self, loop):
        self.first.append(weights(loop.model))

    def after_training_exp(self, loop):
        self.last.append(weights(loop.model))


@pytest.mark.parametrize("strategy", NEUTRAL, ids=lambda s: type(s).__name__)
def test_without_strength_training_is_naive_bit_for_bit(strategy):
    model = lambda: build("small_cnn", (1, 8, 8), {"width": 4})  # noqa: E731
    left, right = ran(Naive(), model=model), ran(strategy, model=model)
    assert_same_weights(weights(left.model), weights(right.model))


@pytest.mark.parametrize(
    "strategy",
    [L2SP(), CPO(), Distill(), WeightAverage(first=False)],
    ids=lambda s: type(s).__name__,
)
def test_with_their_defaults_training_differs_from_naive_from_the_second_experience_on(strategy):
    plain, own = Look(), Look()
    ran(plain)
    ran(own, strategy)
    later = not torch.equal(plain.last[2]["head.weight"], own.last[2]["head.weight"])
    assert later
    if not isinstance(strategy, L2SP):
        assert_same_weights(plain.last[0], own.last[0])


# -- l2sp ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["base", "previous"])
def test_l2sp_pulls_to_its_reference_and_decays_the_heads_rows_that_it_lacks(reference):
    look, strategy = Look(), L2SP(lam=3.0, beta=0.5, reference=reference)
    loop = ran(look, strategy, sizes=(2, 1))
    if reference == "previous":  # as in a third experience that brings a class
        loop.model.head.grow(5)
    theta = moved(loop)
    start = numpy_of(look.first[0] if reference == "base" else look.last[-1])
    expected = 0.0
    for name, t in theta.items():
        known = 0 if reference == "base" and name.startswith("head") else len(start[name])
        expected += 1.5 * ((t[:known] - start[name][:known]) ** 2).sum()
        expected += 0.25 * (t[known:] ** 2).sum()
    assert penalty(strategy, loop).item() == pytest.approx(expected, rel=1e-5)


def test_l2sp_needs_boundaries_only_where_its_reference_moves():
    assert L2SP().needs == () and L2SP(reference="previous").needs == ("boundaries",)


def test_l2sp_leaves_frozen_parameters_out():
    strategy = L2SP(lam=2.0)
    loop = ran(strategy)
    moved(loop)
    loop.model.requires_grad_(False)
    assert penalty(strategy, loop).item() == 0.0


def test_l2sp_with_a_strong_pull_stays_at_the_start_of_a_language_model():
    ends = []
    for lam in (0.0, 1.0):
        loop = loop_of(stream_of(), strategies=[L2SP(lam=lam)], epochs=3)
        start = values(loop.model)
        loop.run()
        end = values(loop.model)
        ends.append(sum((end[n] - start[n]).square().sum().item() for n in start))
    assert ends[1] < 0.9 * ends[0]


# -- weight_average ------------------------------------------------------------------------------


def test_weights_and_batch_norm_statistics_are_averaged_and_new_head_rows_are_not():
    class Keep(Look):
        def before_train_dataset_adaptation(self, loop):
            self.first.append(weights(loop.model))

        def before_training_exp(self, loop):
            pass

    look, strategy = Keep(), WeightAverage(alpha=0.3)
    after = Look()
    model = lambda: build("small_cnn", (1, 8, 8), {"width": 4})  # noqa: E731
    ran(look, strategy, after, model=model)
    for first, trained, mean in zip(look.first, look.last, after.last, strict=True):
        assert any("running_mean" in name for name in mean)
        for name, end in trained.items():
            if not end.is_floating_point():
                assert torch.equal(mean[name], end), name
                continue
            n = len(first[name])
            expected = 0.7 * first[name].double().numpy() + 0.3 * end[:n].double().numpy()
            np.testing.assert_allclose(mean[name][:n].numpy(), expected, rtol=1e-5, atol=1e-7)
            assert torch.equal(mean[name][n:], end[n:])
    assert len(look.first[1]["head.bias"]) == 2 and len(after.last[1]["head.bias"]) == 3


def test_the_next_experience_starts_from_the_average():
    after, look = Look(), Look()
    ran(look, WeightAverage(alpha=0.5), after)
    name = "backbone.layers.0.weight"
    assert torch.equal(look.first[1][name], after.last[0][name])
    assert not torch.equal(look.last[0][name], after.last[0][name])


def test_tied_weights_are_averaged_once():
    from strategies.weight_average import average

    model = torch.nn.Sequential(
        torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 3, bias=False)
    )
    model[1].weight = model[0].weight
    before = {name: t + 1 for name, t in weights(model).items()}
    end = model[0].weight.detach().clone()
    average(model, before, 0.5)
    torch.testing.assert_close(model[1].weight.detach(), end + 0.5)


# -- cpo -------------------------------------------------------------------------------------------


def test_cpo_marks_what_moved_most_keeps_old_marks_and_takes_the_mean_distance():
    look, strategy = Look(), CPO(lam=7.0, share=0.25)
    loop = ran(look, strategy, lr=0.01)
    marks, held = {}, {}
    for first, last in zip(map(numpy_of, look.first), map(numpy_of, look.last), strict=True):
        for name, end in last.items():
            gap = abs(end - first[name])
            k = -(-gap.size // 4)
            top = np.zeros(gap.size, bool)
            top[np.argsort(-gap, None, kind="stable")[:k]] = True
            top = top.reshape(gap.shape) & (gap > 0)
            old, ref = np.zeros(gap.shape, bool), np.zeros(gap.shape)
            if name in marks:
                old[: len(marks[name])], ref[: len(held[name])] = marks[name], held[name]
            marks[name], held[name] = old | top, np.where(top, end, ref)
    for name, expected in marks.items():
        assert np.array_equal(strategy.marked[name].numpy(), expected), name
    theta = moved(loop)
    expected = sum(abs(theta[n] - held[n])[marks[n]].mean() for n in theta if marks[n].any())
    assert penalty(strategy, loop).item() == pytest.approx(7 * expected, rel=1e-5)


def test_what_did_not_move_is_not_marked_and_no_mark_is_no_penalty():
    movement = torch.tensor([[0.0, -3.0], [1.0, 0.0]])
    assert most_moved(movement, 0.5).tolist() == [[False, True], [True, False]]
    assert most_moved(movement, 0.25).tolist() == [[False, True], [False, False]]
    assert most_moved(movement, 0.01).sum() == 1
    assert not most_moved(torch.zeros(3), 1.0).any()


def test_cpo_holds_a_language_models_marked_weights():
    drift = []
    for lam in (1e-9, 20.0):
        looks, strategy = Look(), CPO(lam=lam)
        loop_of(stream_of(), strategies=[looks, strategy], epochs=6, lr=0.01).run()
        first, last = (look["lm.lm_head.weight"] for look in (looks.first[1], looks.last[1]))
        gap = looks.last[0]["lm.lm_head.weight"] - looks.first[0]["lm.lm_head.weight"]
        drift.append(((last - first).abs() * most_moved(gap, 0.1)).sum().item())
    assert drift[1] < 0.7 * drift[0]


# -- distill -------------------------------------------------------------------------------------


def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(-1)


def softmax(z, T):
    e = np.exp((z - z.max(-1, keepdims=True)) / T)
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("T", [1.0, 2.5])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_distance_is_the_kl_in_its_direction(direction, T):
    rng = np.random.default_rng(0)
    old, new = 3 * rng.normal(size=(2, 5, 7))
    p, q = softmax(old, T), softmax(new, T)
    expected = (kl(p, q) if direction == "forward" else kl(q, p)).mean()
    found = distance(torch.tensor(old), torch.tensor(new), direction, T)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    empty = torch.zeros(0, 7, requires_grad=True)
    assert distance(empty, empty, direction, T).item() == 0.0


def test_logits_of_the_last_columns_are_matched_with_the_tokens_that_follow_them():
    y = torch.full((2, 6), -100)
    y[0, 4:] = 5
    y[1, 4] = 3
    new = torch.arange(2 * 4 * 3.0).view(2, 4, 3)  # of columns 2 to 5
    old, kept = at_tokens(-new, new, y)
    assert torch.equal(kept, torch.stack([new[0, 1], new[0, 2], new[1, 1]]))  # columns 3, 4; 3
    assert torch.equal(old, -kept)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_language_model_is_held_at_its_responses_tokens(direction):
    terms = []

    class Check(Naive):
        def before_backward(self, loop):
            before = loop.loss
            strategy.before_backward(loop)
            terms.append((loop.experience.index, (loop.loss - before).item()))
            if loop.experience.index == 1 and len(terms) == 2:
                terms.append(by_hand(strategy.old, loop.model, loop.stream.items[4:], direction))

    strategy = Distill(lam=2.0, direction=direction, T=1.5, first=False)
    loop = loop_of(stream_of(), strategies=[strategy, Check()], lr=1.0)
    loop.hooks["before_backward"] = loop.hooks["before_backward"][1:]  # once, by Check
    loop.experience = loop.stream.experiences[0]
    loop.run()
    (first, nothing), (second, found), expected = terms[:3]
    assert (first, nothing, second) == (0, 0.0, 1)
    assert found == pytest.approx(0.0, abs=1e-6)  # nothing has moved yet
    assert expected == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        loop.model.lm.lm_head.weight.mul_(3)
    strategy.old = build("tiny", (), {"pretrained": False}).eval().requires_grad_(False)
    loop.experience = loop.stream.experiences[1]
    loop.adapted_dataset = loop.experience.train
    loop._fetch(0, (torch.arange(4),), torch.arange(4))
    loop.mb_output = loop.objective.forward(loop)
    value = by_hand(strategy.old, loop.model, loop.stream.items[4:], direction)
    assert value > 1e-3
    assert penalty(strategy, loop).item() == pytest.approx(2 * value, rel=1e-4)
    assert loop.mb_output.shape[1] < loop.mb_x.shape[1]
    loop.mb_output = loop.model(loop.mb_x.clamp(min=0), loop.mb_x >= 0)  # of all columns
    assert penalty(strategy, loop).item() == pytest.approx(2 * value, rel=1e-4)


def test_a_pretrained_model_is_held_from_the_first_experience_on():
    held = []

    class Held(Naive):
        def before_training_epoch(self, loop):
            held.append(distill.old is not None)

    for first in (True, False):
        distill = Distill(first=first)
        loop_of(stream_of(), strategies=[distill, Held()]).run()
    assert held == [True, True, False, True]


@torch.no_grad()
def by_hand(old, new, items, direction):
    """Mean over response tokens of the KL at T=1.5, one item at a time, nothing padded."""
    found = []
    for item in items:
        prompt = new.tokenizer.prompt_ids(item.prompt)
        ids = torch.tensor([prompt + new.tokenizer.response_ids(item.responses[0])])
        p, q = (
            softmax(model(ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1].double().numpy(), 1.5)
            for model in (old, new)
        )
        found += (kl(p, q) if direction == "forward" else kl(q, p)).tolist()
    return np.mean(found)


def test_images_are_held_over_the_classes_known_before_and_as_by_lwf_up_to_a_constant():
    gradients = []

    class Check(Naive):
        def before_backward(self, loop):
            if loop.experience.index == 1 and not gradients:
                z = (3 * loop.mb_output.detach()).requires_grad_()
                whole, loop.mb_output = loop.mb_output, z
                for strategy in (distill, lwf):
                    (g,) = torch.autograd.grad(penalty(strategy, loop), z)
                    gradients.append(g)
                loop.mb_output, loop._loss_open = whole, True
                loop._loss = loop.objective.loss(loop)

    distill, lwf = Distill(lam=2.0, T=2.0), LwF(lam=2.0, T=2.0)
    ran(Check(), distill, lwf)
    assert (
        gradients[0].shape[1] == 3 and gradients[0][:, :2].any() and not gradients[0][:, 2:].any()
    )
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert distill.old is None  # nothing is carried from one experience to the next


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("l2sp", {"lam": -1}),
        ("l2sp", {"reference": "start"}),
        ("weight_average", {"alpha": 1.1}),
        ("cpo", {"share": 0}),
        ("distill", {"T": 0}),
        ("distill", {"direction": "both"}),
        ("hft", {"ratio": 1.1}),
        ("hft", {"level": "row"}),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, tmp_path):
    with pytest.raises(ClError, match=next(iter(settings))):
        cl.run("split_digits", name, strategy=settings, out=str(tmp_path))
