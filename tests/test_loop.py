"""The loop: hook order, claims, loss terms, optimizer, exactness."""

import json
import math

import pytest
import torch
from conftest import DropoutNet, Watcher, assert_same_weights, make_loop, tiny_stream, weights

import cl
from cl.errors import BadValue, ContractError, NonFinite, RunError
from cl.models import build
from cl.optim import lr_factor
from cl.seeding import generator, global_state
from cl.settings import Train
from cl.strategy import EVAL_HOOKS, HOOKS, TRAINING_HOOKS, Strategy
from strategies.naive import Naive
from strategies.replay import Replay


def recorder(names, log):
    def hook(name):
        return lambda self, loop: log.append(name)

    return type("Recorder", (Strategy,), {name: hook(name) for name in names})()


UPDATE = [
    "before_training_iteration",
    "before_forward",
    "after_forward",
    "before_backward",
    "after_backward",
    "before_update",
    "after_update",
    "after_training_iteration",
]
EXPERIENCE = [
    "before_train_dataset_adaptation",
    "after_train_dataset_adaptation",
    "before_training_exp",
    "before_training_epoch",
    *UPDATE,
    *UPDATE,
    "after_training_epoch",
    "before_training_epoch",
    *UPDATE,
    *UPDATE,
    "after_training_epoch",
    "after_training_exp",
]
ONE_EVAL = [
    "before_eval_exp",
    "before_eval_iteration",
    "before_eval_forward",
    "after_eval_forward",
    "after_eval_iteration",
    "before_eval_iteration",
    "before_eval_forward",
    "after_eval_forward",
    "after_eval_iteration",
    "after_eval_exp",
]


def test_training_hooks_fire_in_avalanches_order():
    log = []
    stream = tiny_stream(per_class=20, val=0)  # 32 training rows: two batches of 16
    make_loop([recorder(TRAINING_HOOKS, log)], stream, epochs=2, batch_size=16).run()
    assert log == ["before_training", *EXPERIENCE, *EXPERIENCE, "after_training"]


def test_evaluation_hooks_fire_and_training_hooks_do_not():
    log = []
    loop = make_loop([recorder(HOOKS, log)], observer=Watcher(), evaluation={"batch_size": 6})
    loop.run()
    start = len(log) - 1 - log[::-1].index("before_eval")
    # 12 test items per eval in batches of 6, and 4 validation items in the same pass
    assert log[start + 1 : start + 1 + 3] == ONE_EVAL[:3]
    assert set(log[start:]) == set(EVAL_HOOKS)
    assert log.count("before_training") == 1
    assert log.index("after_training") < start  # the last row is scored after after_training


def test_evals_are_scored_in_one_pass_unless_a_hook_wants_each():
    for names, passes in ((["before_eval_iteration"], 1), (["before_eval_exp"], 2)):
        log = []
        loop = make_loop([recorder([*names, "before_eval"], log)], observer=Watcher())
        loop.run()
        last = len(log) - 1 - log[::-1].index("before_eval")
        assert log[last + 1 :].count(names[0]) == passes


def test_hooks_of_several_strategies_fire_in_the_given_order():
    log = []

    class First(Strategy):
        def before_update(self, loop):
            log.append("first")

    class Second(Strategy):
        def before_update(self, loop):
            log.append("second")

    make_loop([Second(), First()], updates=1).run()
    assert log == ["second", "first", "second", "first"]


def test_forward_hooks_fire_per_micro_batch_and_update_hooks_once():
    log = []
    make_loop([recorder(TRAINING_HOOKS, log)], accumulate=4, updates=1).run()
    assert log.count("before_forward") == log.count("after_backward") == 2 * 4
    assert log.count("before_update") == log.count("before_training_iteration") == 2


class Penalty(Strategy):
    """Adds a term of constant gradient, by the proper way or Avalanche's."""

    def __init__(self, *, inplace=False):
        self.inplace = inplace

    def before_backward(self, loop):
        value = 0.5 * sum(p.sum() for p in loop.model.head.parameters())
        if self.inplace:
            loop.loss += value
        else:
            loop.add_loss("penalty", value)


def test_loss_terms_are_logged_by_name_and_sum_to_the_loss():
    watcher = Watcher()
    make_loop([Penalty()], observer=watcher).run()
    for means in watcher.means:
        named = means["loss_cross_entropy"] + means["loss_penalty"]
        assert means["running_loss"] == pytest.approx(named, abs=1e-5)
        assert "loss_other" not in means


def test_avalanche_style_loss_addition_trains_the_same_and_is_logged_as_other():
    named, other = Watcher(), Watcher()
    left = make_loop([Penalty()], observer=named)
    right = make_loop([Penalty(inplace=True)], observer=other)
    left.run()
    right.run()
    assert_same_weights(weights(left.model), weights(right.model))
    for a, b in zip(named.means, other.means, strict=True):
        assert b["loss_other"] == pytest.approx(a["loss_penalty"], abs=1e-5)


def test_a_loss_term_must_be_a_scalar():
    class Wrong(Strategy):
        def before_backward(self, loop):
            loop.add_loss("wrong", loop.mb_output)

    with pytest.raises(ContractError, match="'wrong' must be a scalar"):
        make_loop([Wrong()]).run()


def test_two_claimants_are_an_error_before_training():
    class A(Strategy):
        def data(self, loop, experience):
            return experience.train

    class B(A):
        pass

    with pytest.raises(BadValue, match=r"A and B both define data\(\)"):
        make_loop([A(), B()])


def test_data_of_none_means_no_gradient_training():
    class Skip(Strategy):
        def data(self, loop, experience):
            return None

    loop = make_loop([Skip()])
    before = {n: t for n, t in weights(loop.model).items() if not n.startswith("head")}
    loop.run()
    assert loop.clock.train_iterations == 0
    after = weights(loop.model)
    assert all(torch.equal(after[n], t) for n, t in before.items())


def test_the_claimed_optimizer_is_used_and_kept_in_step():
    class Own(Strategy):
        def optimizer(self, loop):
            head = list(loop.model.head.parameters())
            rest = list(loop.model.backbone.parameters())
            groups = [{"params": rest, "lr": 0.0}, {"params": head, "lr": 0.1}]
            return torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    loop = make_loop([Own()])
    before = weights(loop.model.backbone)
    loop.run()
    after = {n: t for n, t in weights(loop.model.backbone).items() if "running" not in n}
    assert all(torch.equal(before[n], t) for n, t in after.items() if "num_batches" not in n)
    assert [len(g["params"]) for g in loop.optimizer.param_groups] == [6, 2]
    assert loop.model.head.weight is loop.optimizer.param_groups[1]["params"][0]


def test_gradient_accumulation_equals_the_full_batch():
    left = make_loop([Naive()], model=small_mlp)
    right = make_loop([Naive()], model=small_mlp, accumulate=3)
    left.run()
    right.run()
    for a, b in zip(left.model.parameters(), right.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def small_mlp():
    return build("mlp", (1, 8, 8), {"hidden": [16]})


def test_clipping_bounds_the_gradient_that_is_applied():
    norms = []

    class Look(Strategy):
        def before_update(self, loop):
            for p in loop.model.parameters():
                p.grad.mul_(1000)

        def after_update(self, loop):
            grads = [p.grad for p in loop.model.parameters()]
            norms.append(math.sqrt(sum(float(g.pow(2).sum()) for g in grads)))

    make_loop([Look()], clip=0.5).run()
    assert norms and max(norms) <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 - math.cos(math.pi / 4)) / 2]),
        ("constant", 3, [0.25, 0.5, 0.75, 1]),
    ],
)
def test_learning_rate_schedules(schedule, warmup, expected):
    train = Train(schedule=schedule, warmup=warmup)
    assert [lr_factor(train, k, 4) for k in range(4)] == pytest.approx(expected)


def test_the_schedule_starts_anew_with_every_experience():
    rates = []

    class Look(Strategy):
        def after_update(self, loop):
            rates.append(loop.optimizer.param_groups[0]["lr"])

    make_loop([Look()], lr=0.1, schedule="linear", updates=2).run()
    assert rates == pytest.approx([0.1, 0.05, 0.1, 0.05])


def test_the_head_grows_without_touching_old_columns_and_keeps_their_momentum():
    seen = {}

    class Look(Strategy):
        def after_training_exp(self, loop):
            if loop.experience.index == 0:
                head = loop.model.head.weight
                seen["weight"] = head.detach().clone()
                seen["momentum"] = loop.optimizer.state[head]["momentum_buffer"].clone()

        def before_training_exp(self, loop):
            if loop.experience.index == 1:
                head = loop.model.head.weight
                assert torch.equal(head[:2], seen["weight"]) and len(head) == 4
                momentum = loop.optimizer.state[head]["momentum_buffer"]
                assert torch.equal(momentum[:2], seen["momentum"]) and not momentum[2:].any()
                seen["checked"] = True

    make_loop([Look()]).run()
    assert seen["checked"]


def test_the_optimizer_holds_exactly_what_requires_grad():
    class Freeze(Strategy):
        def before_training_exp(self, loop):
            if loop.experience.index == 1:
                loop.model.backbone.requires_grad_(False)

    loop = make_loop([Freeze()], weight_decay=0.1)
    loop.run()
    held = [p for g in loop.optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in loop.model.head.parameters()}


def test_replacing_the_model_moves_the_optimizer_to_it():
    class Swap(Strategy):
        def before_training_exp(self, loop):
            if loop.experience.index == 1:
                copy = loop.snapshot().requires_grad_(True)
                loop.model = copy

    loop = make_loop([Swap()])
    loop.run()
    held = {id(p) for g in loop.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in loop.model.parameters()}


def test_measuring_changes_neither_weights_nor_random_state():
    quiet = make_loop([Replay(size=8)], model=DropoutNet, epochs=2)
    torch.manual_seed(5)
    quiet.run()
    states = global_state()["torch"], {n: g.get_state() for n, g in quiet.generators.items()}
    loud = make_loop(
        [Replay(size=8)],
        model=DropoutNet,
        epochs=2,
        observer=Watcher(),
        evaluation={"every": 1, "past": "sample:1"},
    )
    torch.manual_seed(5)
    loud.run()
    assert len(loud.observer.kinds) > 8
    assert_same_weights(weights(quiet.model), weights(loud.model))
    assert torch.equal(states[0], global_state()["torch"])
    for name, state in states[1].items():
        assert torch.equal(state, loud.generators[name].get_state()), name


def test_evaluation_leaves_every_module_in_its_mode():
    class Mixed(Strategy):
        def before_training_epoch(self, loop):
            loop.model.norm.eval()

        def after_update(self, loop):
            assert loop.model.training and not loop.model.norm.training

    make_loop([Mixed()], model=DropoutNet, observer=Watcher(), evaluation={"every": 1}).run()


def test_an_empty_replay_buffer_equals_naive_bit_for_bit():
    left, right = make_loop([Naive()], epochs=2), make_loop([Replay(size=0)], epochs=2)
    left.run()
    right.run()
    assert_same_weights(weights(left.model), weights(right.model))


def test_same_seed_is_identical_and_another_differs():
    runs = [make_loop([Replay(size=8)], seed=seed) for seed in (0, 0, 1)]
    for loop in runs:
        loop.run()
    assert_same_weights(weights(runs[0].model), weights(runs[1].model))
    assert any(
        not torch.equal(a, b)
        for a, b in zip(runs[0].model.parameters(), runs[2].model.parameters(), strict=True)
    )


def test_a_non_finite_loss_names_the_first_bad_update():
    class Explode(Strategy):
        def before_backward(self, loop):
            if loop.clock.train_iterations == 2:  # the third update
                loop.add_loss("boom", loop.mb_output.sum() * float("inf"))

    with pytest.raises(NonFinite, match=r"at update 3, in experience 1 \(01_2\+3\)"):
        make_loop([Explode()], updates=2).run()


def test_non_finite_weights_after_the_last_update_are_found():
    class Break(Strategy):
        def after_training_exp(self, loop):
            with torch.no_grad():
                loop.model.head.bias[0] = float("nan")

    with pytest.raises(NonFinite, match="head.bias are not finite"):
        make_loop([Break()]).run()


def test_periodic_evaluation_falls_on_multiples_and_ends_are_scored_once():
    watcher = Watcher()
    make_loop([Naive()], observer=watcher, evaluation={"every": 2}, batch_size=12, epochs=2).run()
    kinds = watcher.kinds
    assert kinds[0] == ("untrained", 0)
    ends = [u for kind, u in kinds if kind == "experience"]
    periodic = [u for kind, u in kinds if kind == "periodic"]
    assert all(u % 2 == 0 for u in periodic) and not set(periodic) & set(ends)
    assert len(kinds) == len(set(kinds))


def test_stop_training_ends_the_experience_only():
    class Early(Strategy):
        def after_training_iteration(self, loop):
            loop.stop_training()

    loop = make_loop([Early()], epochs=5)
    loop.run()
    assert loop.clock.train_iterations == 2


def test_batches_drop_nothing_and_use_a_generator_of_their_own():
    rows = []

    class Collect(Strategy):
        def before_forward(self, loop):
            rows.extend(loop.mb_index.tolist())

    loop = make_loop([Collect()], batch_size=7, stream=tiny_stream(n_classes=2, sizes=(2,)))
    loop.run()
    n = len(loop.stream.experiences[0].train)
    assert rows == torch.randperm(n, generator=generator(0, "batches")).tolist()
    assert sorted(rows) == list(range(n))


def test_a_model_with_too_few_outputs_is_refused():
    with pytest.raises(BadValue, match="3 outputs, the stream needs 4"):
        make_loop([Naive()], model=lambda: DropoutNet(3)).run()


def test_class_incremental_answers_only_name_classes_seen_so_far():
    """A fixed head is wider than the classes seen: its other columns can't be answers."""
    model = DropoutNet(4)
    with torch.no_grad():
        model.out.bias[2:] = 100.0  # unseen classes shout
    watcher = Watcher()
    make_loop([Naive()], model=model, observer=watcher, updates=1, lr=1e-6).run()
    assert watcher.rows[1].test[0] >= 0.3  # two classes: near one half, not 0


def test_bf16_trains_and_keeps_float32_weights():
    loop = make_loop([Naive()], precision="bf16", epochs=3)
    loop.run()
    assert all(p.dtype == torch.float32 for p in loop.model.parameters())


def test_snapshot_is_frozen_and_apart():
    loop = make_loop([Naive()])
    loop.run()
    copy = loop.snapshot()
    assert not copy.training and not any(p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        loop.model.head.bias.add_(1)
    assert not torch.equal(copy.head.bias, loop.model.head.bias)


def test_shared_buffers_must_agree():
    loop = make_loop([Naive()])
    assert loop.buffer("replay", 5, "reservoir") is loop.buffer("replay", 5, "reservoir")
    with pytest.raises(BadValue, match="shared: reservoir of 5 rows and class_balanced of 6"):
        loop.buffer("replay", 6, "class_balanced")


def test_predictions_of_the_wrong_shape_are_refused():
    class Narrow(Strategy):
        def predict(self, loop, batch):
            return torch.zeros(len(batch.x), 1)

    with pytest.raises(RunError, match=r"predictions must be \[B="):
        make_loop([Narrow()], observer=Watcher()).run()


def test_until_ends_an_experience_at_the_first_evaluation_that_reaches_the_score(tmp_path):
    settings = {"out": str(tmp_path), "stream.n_experiences": 2, "eval.every": 5}
    stopped = cl.run("split_digits", "naive", **settings, **{"train.until": "val>=0.9"})
    whole = cl.run("split_digits", "naive", **settings)
    lines = [json.loads(line) for line in (whole.dir / "curves.jsonl").read_text().splitlines()]
    first = next(
        line["updates"]
        for line in lines
        if line["kind"] == "periodic" and line["experience"] == 0 and line["val"][0] >= 0.9
    )
    own = [json.loads(line) for line in (stopped.dir / "curves.jsonl").read_text().splitlines()]
    ends = [line["updates"] for line in own if line["kind"] == "experience"]
    assert ends[0] == first < 180
    assert all(
        line["val"][line["experience"]] >= 0.9 for line in own if line["kind"] == "experience"
    )
    assert stopped.results["cost"]["updates"] == ends[1] < whole.results["cost"]["updates"]


def test_until_ends_runs_of_avalanches_plugins_too(tmp_path):
    settings = {"out": str(tmp_path), "eval.every": 2, "stream.val": 0.2, "train.epochs": 2}
    stopped = cl.run(
        "split_digits", "avalanche:ReplayPlugin", **settings, **{"train.until": "val>=0"}
    )
    assert stopped.results["cost"]["updates"] == 2 * len(stopped.results["experiences"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.until": "val>=0.9"}, "give eval.every"),
        ({"train.until": "val>=0.9", "eval.every": 5, "stream.val": 0}, "validation data"),
        ({"train.until": "test>=0.9"}, "train.until"),
    ],
)
def test_until_without_what_it_looks_at_is_refused(settings, message, tmp_path):
    with pytest.raises(BadValue, match=message):
        cl.run("split_digits", "naive", out=str(tmp_path), **settings)
