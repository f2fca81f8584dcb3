"""Settings and corner cases, one by one: each test fails if its subject is switched off."""

import math
import random
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import DropoutNet, Watcher, assert_same_weights, make_loop, tiny_stream, weights
from scipy.stats import binom

import cl
from cl import metrics
from cl.config import parse
from cl.errors import BadValue, ContractError, NonFinite
from cl.models import Classifier, build
from cl.seeding import frozen, global_state
from cl.strategy import Strategy
from cl.stream import Experience
from strategies import fetril
from strategies.fetril import FeTrIL
from strategies.naive import Naive
from strategies.replay import Replay


def final(strategy=Naive, **train):
    loop = make_loop([strategy()], **train)
    loop.run()
    return weights(loop.model)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"optimizer": "adam", "weight_decay": 0.1}, {"optimizer": "adamw", "weight_decay": 0.1}),
        ({}, {"optimizer": "adam"}),
        ({}, {"warmup": 3}),
        ({}, {"schedule": "cosine"}),
        ({}, {"momentum": 0.0}),
        ({}, {"weight_decay": 0.01}),
        ({}, {"precision": "bf16"}),
        ({}, {"augment": ["crop"]}),
        ({}, {"augment": ["flip"]}),
        ({}, {"clip": 0.01}),
        ({}, {"lr": 0.01}),
        ({}, {"epochs": 2}),
        ({}, {"updates": 1}),
        ({}, {"batch_size": 8}),
        ({}, {"reset_optimizer": True}),
    ],
)
def test_every_training_setting_changes_the_outcome(left, right):
    a, b = final(**left), final(**right)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_reset_optimizer_forgets_momentum_at_an_experiences_start():
    held = []

    class Look(Strategy):
        def before_training_exp(self, loop):
            held.append(len(loop.optimizer.state))

    for reset in (False, True):
        make_loop([Look()], reset_optimizer=reset).run()
    assert held == [0, 8, 0, 0]


def test_a_frozen_parameters_optimizer_state_is_dropped():
    class Freeze(Strategy):
        def before_training_exp(self, loop):
            loop.model.backbone.requires_grad_(loop.experience.index == 0)

    loop = make_loop([Freeze()])
    loop.run()
    assert {id(p) for p in loop.optimizer.state} == {id(p) for p in loop.model.head.parameters()}


def test_a_parameter_that_was_frozen_returns_to_its_own_group():
    class Groups(Strategy):
        def optimizer(self, loop):
            head, rest = loop.model.head.parameters(), loop.model.backbone.parameters()
            return torch.optim.SGD([{"params": rest}, {"params": head, "lr": 0.5}], lr=0.1)

        def before_training_exp(self, loop):
            loop.model.head.requires_grad_(loop.experience.index != 1)

    loop = make_loop([Groups()], tiny_stream(6, (2, 2, 2)))
    loop.run()
    held = loop.optimizer.param_groups[1]["params"]
    assert {id(p) for p in held} == {id(p) for p in loop.model.head.parameters()}


def test_parameters_that_are_not_the_models_stay_in_a_claimed_optimizer():
    extra = torch.nn.Parameter(torch.ones(1))

    class Own(Strategy):
        def optimizer(self, loop):
            return torch.optim.SGD([*loop.model.parameters(), extra], lr=0.1)

        def before_backward(self, loop):
            loop.add_loss("extra", extra.sum())

    make_loop([Own()]).run()
    assert extra.item() < 1


def test_bf16_computes_outputs_in_bf16():
    kinds = set()

    class Look(Strategy):
        def after_forward(self, loop):
            kinds.add(loop.mb_output.dtype)

    make_loop([Look()], precision="bf16").run()
    assert kinds == {torch.bfloat16}


def test_clipping_ignores_gradients_left_on_frozen_parameters():
    norms = []

    class Freeze(Strategy):
        def before_training_exp(self, loop):
            if loop.experience.index == 1:
                loop.model.backbone.requires_grad_(False)

        def before_update(self, loop):
            for p in loop.model.head.parameters():
                p.grad.mul_(1000)

        def after_update(self, loop):
            if loop.experience.index == 1:
                grads = [p.grad for p in loop.model.head.parameters()]
                norms.append(math.sqrt(sum(float(g.pow(2).sum()) for g in grads)))

    make_loop([Freeze()], clip=1.0).run()
    assert norms == pytest.approx([1.0] * len(norms), abs=1e-4)


def test_a_loss_term_outside_before_backward_is_refused():
    class Late(Strategy):
        def after_backward(self, loop):
            loop.add_loss("late", loop.mb_output.sum())

    with pytest.raises(ContractError, match="'late': call add_loss in before_backward only"):
        make_loop([Late()]).run()


def test_predictions_of_nan_stop_the_run():
    class Nan(Strategy):
        def predict(self, loop, batch):
            return torch.full((len(batch.x), loop.seen_classes), float("nan"))

    with pytest.raises(NonFinite, match="predictions became nan"):
        make_loop([Nan()], observer=Watcher()).run()


def test_the_evaluations_batch_size_moves_no_weight():
    loops = [make_loop([FeTrIL()], evaluation={"batch_size": n}) for n in (5, 256)]
    for loop in loops:
        loop.run()
    assert_same_weights(weights(loops[0].model), weights(loops[1].model))


def test_stop_training_before_an_epoch_makes_no_update():
    class Stop(Strategy):
        def before_training_epoch(self, loop):
            loop.stop_training()

    loop = make_loop([Stop()])
    loop.run()
    assert loop.clock.train_iterations == 0


def test_modes_set_before_an_experience_hold_through_it():
    class Still(Strategy):
        def before_training_exp(self, loop):
            loop.model.backbone.layers[0].norm.eval()

        def after_update(self, loop):
            assert not loop.model.backbone.layers[0].norm.training
            assert loop.model.backbone.layers[1].norm.training

    make_loop([Still()], epochs=2).run()


def test_a_model_swapped_in_trains_in_training_mode():
    class Swap(Strategy):
        def before_training_exp(self, loop):
            loop.model = loop.snapshot().requires_grad_(True)

        def after_update(self, loop):
            assert loop.model.training

    make_loop([Swap()]).run()


def test_micro_batches_share_one_draw_of_stored_rows():
    totals = []

    class Look(Naive):
        def after_forward(self, loop):
            if loop.experience.index == 1:
                totals.append(len(loop.mb_y) - len(loop.mb_index))

    make_loop([Replay(size=6), Look()], accumulate=4, updates=1).run()
    assert sum(totals) == 6 and max(totals) - min(totals) <= 1


def test_the_clock_counts_experiences_epochs_and_updates():
    seen = []

    class Look(Strategy):
        def after_training_exp(self, loop):
            clock = loop.clock
            seen.append((clock.train_exp_counter, clock.train_exp_epochs, clock.train_iterations))

    loop = make_loop([Look()], epochs=3, updates=5, batch_size=24)
    loop.run()
    assert seen == [(0, 3, 5), (1, 3, 10)] and loop.clock.train_exp_counter == 2


def test_measuring_puts_back_every_global_generator():
    model = DropoutNet()
    before = global_state()
    with frozen(model):
        torch.rand(3), np.random.rand(3), random.random()
    after = global_state()
    assert torch.equal(before["torch"], after["torch"])
    assert np.array_equal(before["numpy"][1], after["numpy"][1])
    assert before["python"] == after["python"]


def test_fetril_uses_real_features_of_a_class_that_comes_back(monkeypatch):
    stream = tiny_stream(4, (2, 2))
    first = stream.experiences[0]
    stream.experiences.append(Experience(2, "again", first.classes, first.train, first.val))
    fitted = []
    plain = fetril.one_vs_rest

    def spy(x, y, *settings):
        fitted.append(torch.bincount(y).tolist())
        return plain(x, y, *settings)

    monkeypatch.setattr(fetril, "one_vs_rest", spy)
    make_loop([FeTrIL()], stream).run()
    n = torch.bincount(first.train.column("y")).tolist()
    assert fitted[1][:2] == n  # real rows, and no translated ones beside them


def test_sampled_past_scores_exactly_k_past_evals():
    watcher = Watcher()
    stream = tiny_stream(8, (2, 2, 2, 2))
    make_loop([Naive()], stream, observer=watcher, evaluation={"past": "sample:2"}).run()
    last = watcher.rows[-1].test
    assert last[3] is not None and sum(v is not None for v in last[:3]) == 2


class Meddler(Strategy):
    """Freezes the backbone, then changes it behind autograd's back."""

    def __init__(self, how="weights", watch=False):
        self.how = how

    def data(self, loop, experience):
        return experience.train if experience.index == 0 else None

    def after_training_exp(self, loop):
        loop.model.requires_grad_(False)
        if loop.experience.index == 0:
            return
        if self.how == "weights":
            loop.model.backbone.layers[1].conv.weight.data.mul_(-1)
        elif self.how == "statistics":
            loop.model.backbone.layers[1].norm.running_mean.data.add_(3)
        elif self.how == "attribute":
            loop.model.backbone.layers[1].norm.eps = 50.0
        else:
            hook = loop.model.backbone.register_forward_hook(lambda m, i, out: -out)
            assert hook


class Watching(Strategy):
    """A per-batch hook: switches the feature cache off."""

    def before_eval_forward(self, loop):
        pass


@pytest.mark.parametrize("how", ["weights", "statistics", "attribute", "hook"])
def test_the_feature_cache_never_serves_another_backbones_features(how):
    rows = []
    for strategies in ([Meddler(how)], [Meddler(how), Watching()]):
        watcher = Watcher()
        make_loop(strategies, tiny_stream(6, (2, 2, 2)), observer=watcher, epochs=3).run()
        rows.append([(row.test, row.val, row.within) for row in watcher.rows])
    assert rows[0] == rows[1]


def test_a_classifier_with_a_forward_of_its_own_is_not_cached():
    class Mirrored(Classifier):
        def forward(self, x):
            return super().forward(x).flip(1)

    def make():
        made = build("small_cnn", (1, 8, 8), {"width": 8})
        return Mirrored(made.backbone, {})

    rows = []
    for strategies in ([Meddler()], [Meddler(), Watching()]):
        watcher = Watcher()
        make_loop(strategies, model=make, observer=watcher, epochs=3).run()
        rows.append([row.test for row in watcher.rows])
    assert rows[0] == rows[1]


def test_within_is_undefined_for_an_eval_of_one_class(tmp_path):
    result = cl.run("split_digits", "raw_ncm", out=str(tmp_path), stream={"base": 8})
    assert result.results["R_within"][2][1:] == [None, None]
    assert result.results["R_within"][2][0] is not None
    assert "one class" in result.results["undefined"]["R_within[2][1:3]"]
    assert result.results["R"][2][1] is not None


def test_costs_are_counted(tmp_path):
    naive = cl.run("split_digits", "naive", out=str(tmp_path), train={"epochs": 2})
    cost, model = naive.results["cost"], naive.model
    total = sum(p.numel() for p in model.parameters())
    assert cost["trained_parameters"] == cost["total_parameters"] == total
    rows = [e["n_train"] for e in naive.results["experiences"]]
    assert cost["samples_seen"] == 2 * sum(rows)
    assert cost["updates"] == 2 * sum(-(-n // 32) for n in rows)
    fetril = cl.run("split_digits", "fetril", out=str(tmp_path), train={"epochs": 2})
    assert fetril.results["cost"]["stored_bytes"] == 10 * 64 * 4  # one float32 mean per class
    assert fetril.results["cost"]["samples_seen"] == 2 * rows[0] + sum(rows)  # and features once
    assert cost["peak_memory_bytes"] > 10**8


# -- metrics on a recurring stream, by hand ------------------------------------


def test_minima_of_a_recurring_eval_count_from_its_last_visit():
    steps = [(0, [0.9, 0.1]), (1, [0.1, 0.9]), (2, [0.8, 0.3]), (3, [0.5, 0.7]), (3, [0.6, 0.95])]
    R = np.array([[0.9, 0.1], [0.1, 0.9], [0.8, 0.3], [0.6, 0.95]])
    twice = [(0, 2), (1, 3)]
    assert metrics.min_acc(steps, twice, 4) == pytest.approx(0.5)  # not 0.1, of before its return
    assert metrics.wc_acc(R, steps, twice) == pytest.approx((0.5 + 0.95) / 2)


def test_minima_of_an_unfinished_run_leave_out_the_unfinished_experience():
    steps = [(0, [0.9, 0.1]), (1, [0.6, 0.8]), (2, [0.1, 0.1])]
    assert metrics.min_acc(steps, [(0,), (1,), (2,)][:2], 2) == pytest.approx(0.6)


def test_null_bias_of_a_recurring_eval_starts_at_its_last_visit():
    R = np.array([[0.9, 0.5], [0.2, 0.9], [0.8, 0.6], [0.7, 0.9], [0.6, 0.9]])
    n, p = 10, (0.8 + 0.7 + 0.6) / 3
    pmf = binom.pmf(np.arange(n + 1), n, p)
    pairs = [(a, b) for a in range(n + 1) for b in range(n + 1)]
    expected = sum(pmf[a] * pmf[b] * max(a, b) for a, b in pairs) / n - p
    assert metrics.forgetting_null_bias(R, [(0, 2), (4,)], [n, n]) == pytest.approx(expected)


# -- values and folders --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("2", Literal[1, 2, 3], 2),
        ("5", int | str, 5),
        ("five", int | str, "five"),
        ("0.5", float | str, 0.5),
        ("5", int | list[int], 5),
        ("5,6", int | list[int], [5, 6]),
        ("fixed", Literal["fixed"] | list[int], "fixed"),
        ("3,1", Literal["fixed"] | list[int], [3, 1]),
        ("none", list[int], []),
        ("none", int | None, None),
        ("1e-3", float, 1e-3),
        ("true", bool, True),
        ("[1, 2]", Any, [1, 2]),
        ("word", Any, "word"),
    ],
)
def test_text_is_parsed_as_its_annotation_says(text, annotation, value):
    parsed = parse("key", text, annotation)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("value", "annotation"), [(True, int), ("1.5", int), ("", int), ("x", bool)]
)
def test_values_of_another_type_are_refused(value, annotation):
    with pytest.raises(BadValue, match="key must be"):
        parse("key", value, annotation)


def test_different_runs_have_different_folders(tmp_path):
    sources = []
    for k in range(2):
        path = tmp_path / f"file{k}" / "own.py"
        path.parent.mkdir()
        path.write_text('from cl import Strategy\n\n\nclass Naive(Strategy):\n    """own."""\n')
        sources.append(f"{path}:Naive")
    quick = {"train.updates": 1, "stream.n_experiences": 2, "out": str(tmp_path / "runs")}
    runs = [
        cl.run("split_digits", "naive", **quick),
        cl.run("split_digits", sources[0], **quick),
        cl.run("split_digits", sources[1], **quick),
        cl.run("split_digits", "naive", **quick, threads=2),
        cl.run("split_digits", "replay", **quick),
        cl.run("split_digits", Replay(size=5), **quick),
        cl.run("split_digits", Replay(size=6), **quick),
        cl.run("split_digits", "naive", **quick, **{"model.width": 8}),
        cl.run("split_digits", "naive", model=build("mlp", (1, 8, 8), {}), **quick),
    ]
    assert len({run.dir for run in runs}) == len(runs)
    assert runs[5].results["strategy"] == "replay"


def test_another_seed_for_a_recipe_moves_the_streams_seed_too(tmp_path):
    quick = {"train.updates": 1, "stream.n_experiences": 2}
    first = cl.run("split_digits", "naive", out=str(tmp_path), **quick)
    request = cl.runner.Request.from_recipe(first.dir / "recipe.yaml", {"seed": 3})
    request.top["out"] = str(tmp_path)
    third = cl.runner.execute(request, progress=False)
    direct = cl.run("split_digits", "naive", seed=3, out=str(tmp_path / "b"), **quick)
    assert third.results["stream_hash"] == direct.results["stream_hash"]
    assert third.results["stream_hash"] != first.results["stream_hash"]


def test_stream_keys_beside_a_stream_object_are_refused(tmp_path):
    with pytest.raises(BadValue, match=r"stream.val can't be set"):
        cl.run(tiny_stream(), Naive(), out=str(tmp_path), stream={"val": 0.2})


def test_fetril_refuses_a_model_it_can_not_write_before_training(tmp_path):
    with pytest.raises(BadValue, match="fetril needs"):
        cl.run(tiny_stream(), "fetril", model=DropoutNet(), out=str(tmp_path))
