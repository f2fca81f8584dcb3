"""Learning from rewards in the loop: rollouts, references, what is refused, what it learns."""

from functools import cache

import numpy as np
import pytest
import torch

import cl
from cl.cli import main
from cl.data import Table
from cl.errors import BadValue, ContractError
from cl.folder import comparable
from cl.loop import Loop
from cl.models import build
from cl.models.language import next_logp
from cl.registry import find
from cl.rollouts import Rollouts, joined
from cl.runner import resume
from cl.seeding import seed_globals
from cl.settings import Eval, Train
from cl.stream import Eval as StreamEval
from cl.stream import Experience
from cl.text import Item, TextStream

SMALL = {
    "stream": {
        "n_train": 16,
        "n_test": 4,
        "n_val": 2,
        "tasks": ["above", "letter"],
        "skills": ["copy"],
    },
    "train": {"updates": 2, "batch_size": 16},
}


def even_length(prompts, completions, **_):
    return [float(len(text) % 2 == 0) for text in completions]


def stream_of(verifier=even_length, n=8, tasks=2, limit=12):
    items = [Item(f"above {17 + k}:", (), "say", {"n": k}) for k in range(n)]
    index = torch.arange(n)
    parts = [Table({"x": index, "y": index}, part) for part in index.chunk(tasks)]
    return TextStream(
        "say",
        "llm",
        [Experience(k, f"e{k}", (), part) for k, part in enumerate(parts)],
        [StreamEval(f"e{k}", (), part, None, (k,)) for k, part in enumerate(parts)],
        (),
        [],
        items=items,
        verifiers={"say": verifier},
        max_new_tokens={"say": limit},
    )


def strategy_of(name, **options):
    return find("strategies", name).load()(**options)


def loop_of(strategies, stream=None, model=None, **train):
    seed_globals(0)
    strategies = strategies if isinstance(strategies, list) else [strategies]
    return Loop(
        stream=stream or stream_of(),
        strategies=strategies,
        model=model or build("tiny", (), {}),
        objective=None,
        train=Train(**{"batch_size": 8, "epochs": 1, "lr": 0.1, "momentum": 0.0} | train),
        evaluation=Eval(),
        seed=0,
        device=torch.device("cpu"),
    )


def assert_same_weights(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


class Spy(cl.Strategy):
    """Keeps copies of what it is shown."""

    def __init__(self):
        self.seen, self.order, self.losses = [], [], []

    def before_rollout(self, loop):
        self.order.append("before_rollout")

    def after_rollout(self, loop):
        assert loop.rollouts.rewards is None
        self.order.append("after_rollout")

    def after_reward(self, loop):
        assert loop.rollouts.advantages is None
        self.order.append("after_reward")

    def after_advantage(self, loop):
        self.order.append("after_advantage")

    def before_training_iteration(self, loop):
        self.order.append("before_training_iteration")

    def before_backward(self, loop):
        self.losses.append(float(loop.loss.detach()))

    def before_update(self, loop):
        grads = [p.grad.clone() for p in loop.model.parameters()]
        self.seen.append((loop.snapshot(), loop.rollouts, grads))


def by_hand(model, rollouts, advantage):
    """-mean over all answer tokens of A log p, token by token, with a graph."""
    terms = []
    for row in range(len(rollouts)):
        ids = rollouts.x[row][rollouts.x[row] >= 0].unsqueeze(0)
        n = int(rollouts.mask[row].sum())
        logp = next_logp(model, ids, torch.ones_like(ids))[0, -n:]
        terms.append(-advantage[row] * logp)
    return torch.cat(terms).mean()


# -- the update ----------------------------------------------------------------------


def test_an_update_is_the_gradient_of_minus_a_log_p_over_all_answer_tokens():
    spy = Spy()
    rft = strategy_of("rft", group=4, beta=0.0, min_pass=0)
    loop_of([rft, spy], lr=0.0).run()
    model, rollouts, grads = spy.seen[0]
    rewards = rollouts.rewards.numpy().reshape(2, 4)
    centred = rewards - rewards.mean(1, keepdims=True)
    advantage = (centred / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)).reshape(-1)
    assert 0 < rewards.mean() < 1
    np.testing.assert_allclose(rollouts.advantages.numpy(), advantage, rtol=1e-5)
    model.requires_grad_(True)
    loss = by_hand(model, rollouts, torch.from_numpy(advantage))
    # the value is that of a ratio of 1, whatever the gradient
    lengths = rollouts.mask.sum(1).numpy()
    assert spy.losses[0] == pytest.approx(-(advantage * lengths).sum() / lengths.sum(), abs=1e-6)
    for got, wanted in zip(grads, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "fixed", "sequence_sum"])
def test_g10_an_update_split_into_micro_batches_is_the_same_update(aggregate):
    weights = []
    for accumulate in (1, 4):
        options = {"group": 4, "aggregate": aggregate, "beta": 0.3, "kl": "full", "min_pass": 0}
        loop = loop_of(strategy_of("rft", **options), accumulate=accumulate, lr=0.01, epochs=2)
        loop.run()
        weights.append([p.detach().clone() for p in loop.model.parameters()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_rollout_hooks_fire_in_order_before_the_updates_that_learn_from_it():
    spy = Spy()
    loop_of([strategy_of("rft", group=4, refresh=2, min_pass=0), spy]).run()
    once = ["before_rollout", "after_rollout", "after_reward", "after_advantage"]
    assert spy.order == (once + ["before_training_iteration"] * 2) * 2


class Shaper(cl.Strategy):
    """Rewards the opposite, and silences the second answer."""

    def __init__(self):
        self.advantages = []

    def after_reward(self, loop):
        loop.rollouts.rewards = 1 - loop.rollouts.rewards

    def after_advantage(self, loop):
        loop.rollouts.counted[1] = False
        self.advantages.append(loop.rollouts.advantages.clone())


def test_rewards_and_advantages_may_be_rewritten_in_their_hooks():
    spy, shaper, plain = Spy(), Shaper(), Spy()
    loop_of([strategy_of("rft", group=4, beta=0.0, min_pass=0), shaper, spy], lr=0.0).run()
    loop_of([strategy_of("rft", group=4, beta=0.0, min_pass=0), plain], lr=0.0).run()
    model, rollouts, grads = spy.seen[0]
    torch.testing.assert_close(rollouts.advantages, -plain.seen[0][1].advantages)
    model.requires_grad_(True)
    kept = torch.arange(len(rollouts)) != 1
    some = rollouts.of_prompts(torch.arange(2))
    for name in ("x", "mask", "group"):
        setattr(some, name, getattr(rollouts, name)[kept])
    loss = by_hand(model, some, rollouts.advantages[kept])
    for got, wanted in zip(grads, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_g21_rewarding_answers_that_stop_makes_stopping_likelier():
    def stops(prompts, completions, **_):
        return [float(len(text) == 0) for text in completions]

    def p_eos(model):
        ids = torch.tensor([model.tokenizer.prompt_ids("above 17:")])
        return model(ids, torch.ones_like(ids))[0, -1].softmax(-1)[2].item()

    torch.manual_seed(0)
    model = build("tiny", (), {"pretrained": False})
    with torch.no_grad():  # so that some answers stop at once
        model.lm.lm_head.weight[2] *= 12
    before = p_eos(model)
    rft = strategy_of("rft", group=16, min_pass=0, advantage="dr_grpo", unfinished="zero")
    loop = loop_of(rft, stream_of(stops, tasks=1), model=model, batch_size=128, lr=0.3)
    loop.run()
    assert loop.clock.train_iterations == 1
    assert p_eos(loop.model) > before


def test_updates_and_batches_of_answers_follow_refresh_and_passes():
    def counted(**options):
        spy = Spy()
        stream = stream_of(n=12, tasks=1)
        options = {"group": 4, "min_pass": 0, "zero_variance": "keep"} | options
        loop = loop_of([strategy_of("rft", **options), spy], stream, epochs=2)
        assert loop.objective.batches(loop, stream.experiences[0].train)
        loop.run()
        planned = 2 * len(loop.objective.batches(loop, stream.experiences[0].train))
        assert loop.clock.train_iterations == planned
        return planned, spy.order.count("after_rollout")

    # 12 prompts x 4 answers = 48, of which 8 an update: 6 updates an epoch, 2 epochs
    assert counted() == (12, 12)
    assert counted(refresh=2) == (12, 6)
    assert counted(refresh=4) == (12, 4)  # 8 prompts, then the 4 that are left
    assert counted(passes=3) == (36, 12)
    assert counted(refresh="epoch") == (12, 2)
    assert counted(refresh="inf") == (12, 1)


def test_g30_stale_answers_are_compared_with_the_policy_that_drew_them():
    spy = Spy()
    rft = strategy_of("rft", group=4, passes=2, beta=0.0, clip=9.0, clip_high=None, min_pass=0)
    stream = stream_of(n=2, tasks=1)
    loop_of([rft, spy], stream, lr=0.05, batch_size=8).run()
    (first, rollouts, _), (second, same, grads) = spy.seen
    assert same is rollouts
    second.requires_grad_(True)
    terms = []
    for row in range(len(rollouts)):
        ids = rollouts.x[row][rollouts.x[row] >= 0].unsqueeze(0)
        n = int(rollouts.mask[row].sum())
        one = torch.ones_like(ids)
        new = next_logp(second, ids, one)[0, -n:]
        old = next_logp(first, ids, one)[0, -n:].detach()
        terms.append(-rollouts.advantages[row] * (new - old).exp())
    wanted = torch.autograd.grad(torch.cat(terms).mean(), list(second.parameters()))
    for got, expected in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-6)


def test_iterative_sft_is_the_likelihood_of_own_right_answers():
    spy = Spy()
    options = {"advantage": "reinforce", "clip": None, "refresh": "epoch", "beta": 0.0}
    stream = stream_of(n=2, tasks=1)
    loop_of([strategy_of("rft", group=8, min_pass=0, **options), spy], stream, lr=0.0).run()
    model, rollouts, grads = spy.seen[0]
    model.requires_grad_(True)
    total = by_hand(model, rollouts, rollouts.rewards)
    assert len(rollouts) == 16 and len(spy.seen) == 2  # two minibatches of 8
    assert spy.seen[1][1] is rollouts
    both = [a + b for a, b in zip(spy.seen[0][2], spy.seen[1][2], strict=True)]
    wanted = torch.autograd.grad(total, list(model.parameters()))
    # each minibatch is averaged over its own tokens, so the two weigh almost alike
    cosine = torch.nn.functional.cosine_similarity(
        torch.cat([g.flatten() for g in both]), torch.cat([g.flatten() for g in wanted]), 0
    )
    assert cosine > 0.97


# -- references ----------------------------------------------------------------------


class Watch(cl.Strategy):
    """Weights at the beginning of every experience, and the reference during it."""

    def __init__(self):
        self.starts, self.references = [], []

    def before_training_exp(self, loop):
        self.starts.append(loop.snapshot())

    def before_update(self, loop):
        self.references.append(loop.objective.reference())


def reference_of(kind, **options):
    watch = Watch()
    rft = strategy_of("rft", group=4, reference=kind, beta=0.1, min_pass=0, **options)
    stream = stream_of(n=6, tasks=3)
    loop = loop_of([rft, watch], stream, lr=0.05)
    loop.run()
    return watch, loop


def test_g35_the_previous_reference_is_the_model_as_the_experience_began():
    watch, _ = reference_of("previous")
    assert len(watch.starts) == len(watch.references) == 3
    for start, reference in zip(watch.starts, watch.references, strict=True):
        assert_same_weights(start, reference)


def test_g36_the_base_reference_is_unchanged_after_three_experiences():
    watch, loop = reference_of("base")
    for reference in watch.references:
        assert_same_weights(watch.starts[0], reference)
    moved = zip(loop.model.parameters(), watch.starts[0].parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


def test_the_ema_reference_follows_the_weights_and_none_has_no_divergence():
    watch, loop = reference_of("ema", ema=0.0)
    held = watch.references[-1]  # ema=0: after the update it is the model itself
    assert_same_weights(held, loop.model)
    watch, _ = reference_of("none")
    assert watch.references == [None] * 3


@cache
def moved(beta, kind="k2"):
    rft = strategy_of("rft", group=4, beta=beta, kl=kind, reference="base", min_pass=0)
    loop = loop_of(rft, stream_of(n=4, tasks=1), lr=0.02, epochs=16)
    base = loop.snapshot()
    loop.run()
    ids = torch.tensor([loop.model.tokenizer.prompt_ids("above 17:")])
    one = torch.ones_like(ids)
    with torch.no_grad():
        new, old = (m(ids, one).log_softmax(-1) for m in (loop.model, base))
    return float((old.exp() * (old - new)).sum(-1).mean())


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "ratio_k3", "full"])
def test_a_heavy_divergence_holds_the_model_at_its_reference(kind):
    assert moved(0.5, kind) < 0.8 * moved(0.0)


def test_g39_evaluating_more_often_changes_no_weight(tmp_path):
    runs = [
        cl.run("skills", "rft", out=str(tmp_path / str(every)), **SMALL, eval={"every": every})
        for every in (None, 1)
    ]
    assert_same_weights(runs[0].model, runs[1].model)


def test_g38_the_optimizers_state_is_reset_for_every_experience_or_kept():
    steps = []

    class Steps(cl.Strategy):
        def after_training_exp(self, loop):
            steps.append(max(int(s["step"]) for s in loop.optimizer.state.values()))

    for reset in (True, False):
        loop_of(
            [strategy_of("rft", group=4, min_pass=0), Steps()],
            optimizer="adamw",
            lr=1e-4,
            reset_optimizer=reset,
        ).run()
    assert steps == [2, 2, 2, 4]


def test_a_run_that_is_resumed_ends_as_one_that_was_not(tmp_path):
    whole = cl.run("skills", "rft", out=str(tmp_path / "a"), **SMALL)
    folder = cl.run("skills", "rft", out=str(tmp_path / "b"), **SMALL).dir
    last = sorted((folder / "checkpoint").iterdir())[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    text = (folder / "results.json").read_text().replace('"finished"', '"running"', 1)
    (folder / "results.json").write_text(text)
    again = resume(folder)
    assert comparable(again.results) == comparable(whole.results)
    assert_same_weights(again.model, whole.model)


# -- rewards -------------------------------------------------------------------------


def test_an_answer_that_the_verifier_fails_on_is_left_out_and_counted():
    def picky(prompts, completions, **_):
        if any(len(text) > 3 for text in completions):
            raise ValueError("too long")
        return [1.0 for _ in completions]

    spy = Spy()
    loop = loop_of(
        [strategy_of("rft", group=4, min_pass=0, unfinished="score"), spy], stream_of(picky)
    )
    loop.run()
    unscored = [r.rewards.isnan() for _, r, _ in spy.seen]
    assert sum(int(u.sum()) for u in unscored) == sum(loop.reported["unscorable"].values()) > 0
    for (_, r, _), lost in zip(spy.seen, unscored, strict=True):
        assert not r.counted[lost].any() and not r.advantages[lost].any()


def test_answers_without_an_end_earn_nothing_or_are_scored_or_dropped():
    def always(prompts, completions, **_):
        return [1.0] * len(completions)

    for choice in ("zero", "score", "drop"):
        spy = Spy()
        rft = strategy_of("rft", group=4, min_pass=0, unfinished=choice, advantage="reinforce")
        loop_of([rft, spy], stream_of(always, limit=2)).run()
        r = spy.seen[0][1]
        assert r.unfinished.any()
        earned = r.rewards[r.unfinished]
        assert (earned == (0 if choice == "zero" else 1)).all()
        assert r.counted[r.unfinished].any() == (choice != "drop")


def test_form_is_a_share_of_the_reward():
    stream = stream_of(even_length)
    stream.formats = {"say": lambda text: len(text) < 4}
    spy = Spy()
    loop_of([strategy_of("rft", group=4, min_pass=0, form=0.25), spy], stream).run()
    r = spy.seen[0][1]
    for k, text in enumerate(r.texts):
        right, formed = len(text) % 2 == 0, len(text) < 4
        expected = 0.75 * right + 0.25 * formed if not r.unfinished[k] else 0.0
        assert r.rewards[k].item() == pytest.approx(expected)


def test_dropped_prompts_leave_the_loss_and_refilled_ones_are_replaced():
    def first_only(prompts, completions, n):
        return [float(k % 2 == 0 and len(c) % 2 == 0) for k, c in zip(n, completions)]

    for choice in ("drop", "refill"):
        spy = Spy()
        rft = strategy_of("rft", group=4, min_pass=0, zero_variance=choice, unfinished="score")
        loop_of([rft, spy], stream_of(first_only)).run()
        for _, r, _ in spy.seen:
            speaks = r.speaking()
            if choice == "drop":
                assert torch.equal(r.counted.view(-1, 4).all(1), speaks)
                assert r.n_prompts == 2
            else:
                assert speaks.all() and r.n_prompts == 2
                assert (r.rows["x"] % 2 == 0).all()


@pytest.mark.parametrize("prompts_left", [1, 2])
def test_an_epoch_has_the_planned_updates_though_few_prompts_are_left(prompts_left, monkeypatch):
    def some(prompts, completions, n):
        return [float(k < prompts_left and len(c) % 2 == 0) for k, c in zip(n, completions)]

    monkeypatch.setattr("cl.objectives.policy_gradient.REFILLS", 0)
    options = {"group": 4, "min_pass": 0, "zero_variance": "refill", "unfinished": "score"}
    spy, rft = Spy(), strategy_of("rft", refresh=5, **options)
    loop = loop_of([rft, spy], stream_of(some, n=5, tasks=1), batch_size=4)
    planned = len(loop.objective.batches(loop, loop.stream.experiences[0].train))
    loop.run()
    assert loop.clock.train_iterations == planned == 5
    assert spy.seen[0][1].n_prompts == prompts_left  # 4 or 8 answers for 5 updates


def test_a_refilled_batch_has_new_prompts_where_replayed_ones_say_nothing():
    def some(prompts, completions, n):
        return [float(k % 4 == 0 and len(c) % 2 == 0) for k, c in zip(n, completions)]

    spy, rft = Spy(), strategy_of("rft", group=4, min_pass=0, zero_variance="refill")
    replay = strategy_of("replay", size=32, policy="reservoir")
    loop = loop_of([rft, replay, spy], stream_of(some, n=32, tasks=2), batch_size=16)
    loop.run()
    held = loop.buffers["replay"].rows["x"].tolist()
    assert sorted(held) == list(range(32))  # each row was offered once
    own = [int((r.rows["x"] >= 16).sum()) for _, r, _ in spy.seen[4:]]
    assert all(r.n_prompts <= 8 for _, r, _ in spy.seen) and min(own) >= 2


def test_remax_subtracts_the_greedy_answers_reward():
    spy = Spy()
    loop_of([strategy_of("rft", group=4, min_pass=0, advantage="remax"), spy]).run()
    r = spy.seen[0][1]
    torch.testing.assert_close(r.advantages, r.rewards - r.baseline[r.group])


def test_joined_rollouts_keep_every_answer_where_its_prompt_ends():
    def block(left, width, start):
        x = torch.arange(start, start + 2 * (left + width)).view(2, -1)
        y = x.masked_fill(torch.arange(left + width) < left, -100)
        mask = torch.ones(2, width, dtype=torch.bool)
        return Rollouts(
            {"x": torch.tensor([start])},
            group=torch.zeros(2, dtype=torch.int64),
            x=x,
            y=y,
            left=left,
            mask=mask,
            logp=torch.ones(2, width),
            texts=["a", "b"],
            unfinished=torch.zeros(2, dtype=torch.bool),
        )

    both = joined([block(2, 3, 0), block(4, 1, 100)])
    assert both.left == 4 and both.group.tolist() == [0, 0, 1, 1]
    assert both.x.tolist()[0] == [-1, -1, 0, 1, 2, 3, 4]
    assert both.y.tolist()[2] == [-100] * 4 + [104, -100, -100]
    assert both.mask.tolist()[3] == [True, False, False]
    assert both.of_prompts(torch.tensor([1])).x.tolist() == both.x.tolist()[2:]


# -- with other strategies, on classifiers -------------------------------------------


def test_replay_answers_stored_prompts_anew():
    spy = Spy()
    replay = strategy_of("replay", size=4)
    loop_of([strategy_of("rft", group=4, min_pass=0), replay, spy], epochs=1).run()
    first, last = spy.seen[0][1], spy.seen[-1][1]
    assert (first.n_prompts, last.n_prompts) == (2, 4)
    assert (last.rows["x"][:2] >= 4).all() and (last.rows["x"][2:] < 4).all()
    assert len(spy.seen) == 4  # as many updates as without


@pytest.mark.parametrize("policy", ["class_balanced", "reservoir"])
def test_replay_with_rewards_runs_on_pictures(policy, tmp_path):
    settings = {"strategy.replay.policy": policy, "stream": {"n_experiences": 2}}
    result = cl.run("split_digits", "replay+rft", out=str(tmp_path), **settings)
    assert result.R[1, 0] > 0.6


def test_a_classifier_learns_its_classes_from_rewards_as_from_labels(tmp_path):
    rewarded = cl.run("split_digits", "rft", out=str(tmp_path))
    shown = cl.run("split_digits", "sft", out=str(tmp_path))
    assert rewarded.R[0, 0] > shown.R[0, 0] - 0.05


def test_a_classifiers_update_is_reinforce_on_drawn_classes():
    spy = Spy()
    stream = find("streams", "split_digits").load()(n_experiences=1)
    model = build("mlp", stream.input_shape, {})
    rft = strategy_of("rft", group=4, beta=0.0, advantage="dr_grpo")
    loop_of([rft, spy], stream, model, batch_size=8, updates=1).run()
    model, r, grads = spy.seen[0]
    model.requires_grad_(True)
    labels = r.rows["y"][r.group]
    right = (r.y == labels).float().view(8, 4)
    advantage = (right - right.mean(1, keepdim=True)).flatten()
    torch.testing.assert_close(r.advantages, advantage)
    logits = model(stream.transform(r.rows["x"]) if stream.transform else r.rows["x"])
    logp = logits.log_softmax(1)[r.group, r.y]  # 8 answers, by hand one by one
    wanted = torch.autograd.grad(-(advantage * logp).mean(), list(model.parameters()))
    for got, expected in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("labels", [False, True])
def test_a_classifier_draws_classes_it_has_seen_and_of_its_task(labels, tmp_path):
    drawn = {}

    class Drawn(cl.Strategy):
        def after_rollout(self, loop):
            got = set(loop.rollouts.y.tolist())
            drawn.setdefault(loop.experience.index, set()).update(got)

    settings = {"stream": {"n_experiences": 2, "task_labels": labels}, "train.updates": 3}
    cl.run("split_digits", [strategy_of("rft"), Drawn()], out=str(tmp_path), **settings)
    assert drawn[0] <= set(range(5))
    assert (min(drawn[1]) >= 5) == labels


@pytest.mark.parametrize("other", ["distill", "derpp"])
def test_who_reads_the_output_gets_logits_of_all_classes_with_task_labels_too(other, tmp_path):
    settings = {"stream": {"n_experiences": 2, "task_labels": True}, "train.updates": 3}
    cl.run("split_digits", f"rft+{other}", out=str(tmp_path), **settings)


def test_explored_answers_are_not_in_the_entropy():
    logged = []

    class Logs(cl.Strategy):
        def after_advantage(self, loop):
            loop.log = lambda name, value: logged.append((name, float(value)))

    stream = find("streams", "split_digits").load()(n_experiences=1)
    model = build("mlp", stream.input_shape, {})
    rft = strategy_of("rft", group=8, beta=0.0, explore=0.5)
    spy = Spy()
    loop_of([rft, Logs(), spy], stream, model, batch_size=8, updates=1).run()
    r = spy.seen[0][1]
    drawn = -r.logp[~r.explored].mean().item()
    assert r.explored.any()
    assert dict(logged)["entropy"] == pytest.approx(drawn, rel=1e-5)


def test_many_inputs_are_answered_part_by_part():
    sizes = []
    stream = find("streams", "split_digits").load()(n_experiences=1)
    model = build("mlp", stream.input_shape, {})
    rft = strategy_of("rft", group=2, beta=0.0, refresh="epoch", clip=None)
    loop = loop_of(rft, stream, model, batch_size=64)
    loop.grow_to(10)
    loop.model.register_forward_hook(lambda module, given, made: sizes.append(len(made)))
    rows = stream.experiences[0].train.rows(torch.arange(600))
    loop.objective.answers(loop, rows, 2, loop.rng("test"))
    assert sizes == [512, 88]


def test_a_running_mean_covers_adapters_that_are_put_in_later():
    rft = strategy_of("rft", group=4, min_pass=0, reference="ema", ema=0.0)
    seen = []

    class Seen(cl.Strategy):
        def after_training_epoch(self, loop):
            seen.append(rft.reference)
            assert_same_weights(rft.reference, loop.model)

    loop_of([rft, strategy_of("lora"), Seen()], stream_of(n=4, tasks=2)).run()
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("name", "options", "needs"),
    [
        ("rft", {}, ("boundaries",)),
        ("rft", {"reference": "ema"}, ("boundaries",)),
        ("rft", {"reference": "base"}, ()),
        ("rft", {"beta": 0.0}, ()),
        ("rif_rft", {"beta": 0.0}, ("boundaries",)),
    ],
)
def test_who_begins_something_with_an_experience_says_that_it_needs_boundaries(
    name, options, needs
):
    assert strategy_of(name, **options).needs == needs


# -- rif_rft -------------------------------------------------------------------------


def test_rif_leaves_out_what_is_never_answered_rightly():
    def some(prompts, completions, n):
        return [float(k in (0, 1, 5)) for k in n]

    for drop, kept in (("all_wrong", [[0, 1], [5]]), ("zero_variance", [[], []])):
        trained = []

        class Trained(cl.Strategy):
            def after_train_dataset_adaptation(self, loop, trained=trained):
                table = loop.adapted_dataset
                trained.append([] if table is None else table.column("x").tolist())

        rif = strategy_of("rif_rft", group=4, drop=drop, min_pass=0)
        loop = loop_of([rif, Trained()], stream_of(some, limit=12))
        if drop == "zero_variance":
            with pytest.warns(UserWarning, match="no prompt is left"):
                loop.run()
        else:
            loop.run()
        assert trained == kept
        assert loop.reported["kept_share"] == {k: len(v) / 4 for k, v in enumerate(kept)}


# -- what is refused, and what is said -----------------------------------------------


def never(prompts, completions, **_):
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("strategy", "options", "train", "message"),
    [
        ("rft", {"group": 3, "min_pass": 0}, {}, "multiple of strategy.group=3"),
        ("rft", {"group": 1, "min_pass": 0}, {}, "compares"),
        ("rft", {"min_pass": 0.05}, {}, "e0 can't be learned from rewards: 0.0%"),
    ],
)
def test_what_can_not_work_is_refused_before_training(strategy, options, train, message):
    with pytest.raises(BadValue, match=message):
        loop_of(strategy_of(strategy, **options), stream_of(never), **train)


def test_a_task_that_sinks_later_is_warned_of_and_recorded():
    stream = stream_of()
    rft = strategy_of("rft", group=4)
    loop = loop_of(rft, stream)
    stream.verifiers["say"] = never
    with pytest.warns(UserWarning, match=r"e\d: only 0.0%"):
        loop.run()
    assert loop.reported["pass_at_group"] == {0: 0.0, 1: 0.0}


def test_labelled_rows_among_answers_are_refused_in_one_line():
    class Labelled(cl.Strategy):
        def before_forward(self, loop):
            loop.append_rows({"x": torch.tensor([0]), "y": torch.tensor([0])})

    with pytest.raises(ContractError, match="before_rollout"):
        loop_of([strategy_of("rft", group=4, min_pass=0), Labelled()]).run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["skills", "rft", "model.pretrained=false"], "can't be learned from rewards"),
        (["skills", "rft", "strategy.group=7"], "multiple of strategy.group=7"),
        (["skills", "rft", "strategy.kl=k4"], "k1"),
        (["skills", "rft", "strategy.refresh=0"], "refresh"),
        (["skills", "rft+sft"], "both define objective()"),
        (["split_digits", "rft", "stream.online=true"], "several answers"),
        (["split_digits", "rif_rft"], "where rft does its job"),
        (["split_digits", "rft", "strategy.reference=base"], "kl=full"),
        (["split_digits", "rft", "train.augment=flip"], "augment"),
    ],
)
def test_bad_settings_end_in_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", *arguments, f"out={tmp_path}"])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert not list(tmp_path.iterdir())


def test_a_stream_without_verifier_is_refused():
    stream = stream_of()
    stream.verifiers = {}
    with pytest.raises(BadValue, match="no verifier"):
        loop_of(strategy_of("rft", group=4), stream)


def test_results_and_curves_hold_what_was_reported(tmp_path):
    result = cl.run("skills", "rft", out=str(tmp_path), **SMALL)
    shares = result.results["reported"]["pass_at_group"]
    assert len(shares) == 2 and all(0 < share <= 1 for share in shares)


def test_a_table_of_prompts_is_enough_for_a_batch_of_rollouts():
    r = Rollouts({"x": torch.arange(3), "y": torch.arange(3)})
    r.add_prompts({"x": torch.tensor([7]), "y": torch.tensor([8]), "more": torch.tensor([9])})
    assert r.n_prompts == 4 and r.rows["y"].tolist() == [0, 1, 2, 8]
