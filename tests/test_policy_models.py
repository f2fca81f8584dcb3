"""Policies: what they are made of, how they start, how they are built again, their anatomy."""

import math

import numpy as np
import pytest
import torch

from cl import checkpoint
from cl.errors import BadValue, DataError
from cl.models import build, grow, rebuild
from cl.models.anatomy import CATEGORIES, anatomy
from cl.models.policy import Actions, PolicyModel
from cl.start import take


def model(name="actor_critic", shape=(4,), n=3, continuous=False, seed=0, **settings):
    torch.manual_seed(seed)
    return build(name, shape, settings, actions=Actions(n, continuous))


def by_hand(x, layers, activation=np.tanh):
    for layer in layers[:-1]:
        x = activation(x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    return x @ layers[-1].weight.detach().numpy().T + layers[-1].bias.detach().numpy()


def randomised(made):
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape))
    return made


def test_policy_and_value_are_two_separate_networks():
    made = randomised(model())
    x = torch.randn(5, 4)
    scores, values = made.outputs(x)
    actor = [layer["actor"] for layer in made.backbone.layers]
    critic = [layer["critic"] for layer in made.backbone.layers]
    assert [layer.out_features for layer in actor] == [64, 64]
    np.testing.assert_allclose(
        scores.detach(), by_hand(x.numpy(), [*actor, made.policy]), atol=1e-4
    )
    np.testing.assert_allclose(
        values.detach(), by_hand(x.numpy(), [*critic, made.value])[:, 0], atol=1e-4
    )
    assert scores.shape == (5, 3) and values.shape == (5,)
    assert torch.equal(made(x), scores) and torch.equal(made.values(x), values)
    assert torch.equal(made.classify(made.features(x)), scores)
    values.sum().backward()
    assert all(layer.weight.grad is None for layer in [*actor, made.policy])


def test_a_shared_tower_serves_both():
    made = randomised(model(shared=True, hidden=[8], activation="relu"))
    x = torch.randn(5, 4)
    scores, values = made.outputs(x)
    trunk = list(made.backbone.layers)
    relu = lambda v: np.maximum(v, 0)  # noqa: E731
    for found, head in ((scores, made.policy), (values[:, None], made.value)):
        expected = by_hand(x.numpy(), [*trunk, head], relu)
        np.testing.assert_allclose(found.detach(), expected, atol=1e-5)
    assert torch.equal(made.values(x), values)


@pytest.mark.parametrize("shared", [False, True])
def test_weights_start_orthogonal_with_the_published_gains_and_no_bias(shared):
    made = model(shape=(70,), shared=shared)
    for name, p in made.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
            continue
        gain = {"policy": 0.01, "value": 1.0}.get(name.partition(".")[0], math.sqrt(2))
        short = p.detach() if p.shape[0] <= p.shape[1] else p.detach().T
        expected = gain**2 * np.eye(len(short))
        np.testing.assert_allclose(short @ short.T, expected, atol=1e-5, err_msg=name)


def test_a_fresh_policy_has_almost_equal_probabilities():
    p = model()(torch.randn(50, 4)).softmax(-1)
    assert (p - 1 / 3).abs().max() < 0.02


def test_continuous_actions_have_a_spread_of_their_own():
    made = model(n=2, continuous=True, log_std=-0.5)
    assert made.log_std.tolist() == [-0.5, -0.5] and made.log_std.requires_grad
    assert model().log_std is None
    assert "log_std" not in dict(model().named_parameters())


def test_observations_of_any_shape_are_flattened():
    assert model(shape=(3, 5, 5))(torch.rand(2, 3, 5, 5)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "n", "continuous", "settings"),
    [
        ("actor_critic", 3, False, {}),
        ("actor_critic", 2, True, {"log_std": -1.0, "hidden": [8, 8, 8]}),
        ("actor_critic", 5, False, {"shared": True, "activation": "elu"}),
        ("q_network", 4, False, {"hidden": [16]}),
    ],
)
def test_a_policy_is_built_again_from_its_architecture(name, n, continuous, settings):
    made = randomised(model(name, n=n, continuous=continuous, **settings))
    assert made.architecture["actions"] == {"n": n, "continuous": continuous}
    weights = {}
    checkpoint.pack(made.architecture, weights, "architecture")  # JSON values alone
    again = rebuild(made.architecture)
    again.load_state_dict(made.state_dict())
    x = torch.randn(6, 4)
    for ours, theirs in zip(made.outputs(x), again.outputs(x), strict=True):
        assert torch.equal(ours, theirs)
    assert again.actions == Actions(n, continuous) and again.architecture == made.architecture


def test_a_policy_does_not_grow():
    made = model()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    grow(made, 10)
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())


def test_what_can_not_act_is_refused():
    with pytest.raises(BadValue, match="model mlp can't act, the stream has 3 actions; take"):
        build("mlp", (4,), {}, actions=Actions(3))
    with pytest.raises(BadValue, match="actor_critic is a policy; it goes with a stream of the rl"):
        build("actor_critic", (1, 8, 8), {})
    with pytest.raises(BadValue, match="q_network values a number of actions, the stream has 2 c"):
        model("q_network", n=2, continuous=True)
    with pytest.raises(BadValue, match="at least 1 action; there are 0"):
        Actions(0)


def test_q_values_are_those_of_relu_layers():
    made = randomised(model("q_network", hidden=[8, 8]))
    x, relu = torch.randn(5, 4), lambda v: np.maximum(v, 0)
    expected = by_hand(x.numpy(), [*made.backbone.layers, made.value], relu)
    np.testing.assert_allclose(made(x).detach(), expected, atol=1e-4)
    assert len(made.outputs(x)) == 1 and isinstance(made, PolicyModel)


@pytest.mark.parametrize("shared", [False, True])
def test_the_anatomy_of_an_actor_critic_has_heads_layers_and_nothing_twice(shared):
    made = model(continuous=True, shared=shared)
    parts = anatomy(made)
    assert [part.name for part in parts] == [name for name, _ in made.named_parameters()]
    assert {part.category for part in parts} <= set(CATEGORIES)
    for part in parts:
        owner = part.name.partition(".")[0]
        if owner in ("policy", "value"):
            assert (part.category, part.layer) == ("head", None)
        elif owner == "backbone":
            depth = int(part.name.split(".")[2])  # of both towers
            assert (part.category, part.layer) == ("feed_forward", depth)
        else:
            assert (part.name, part.category, part.layer) == ("log_std", "other", None)
    q = {part.name: part for part in anatomy(model("q_network"))}
    assert q["value.weight"].category == "head" and q["backbone.layers.1.bias"].layer == 1


def saved_run(folder, monkeypatch, made):
    weights = {k: v.clone() for k, v in made.state_dict().items()}
    monkeypatch.setattr("cl.start.last_model", lambda *_: (made.architecture, weights))
    return {"from": str(folder)}


def test_a_policy_starts_from_another_ones_backbone_or_whole(tmp_path, monkeypatch):
    made = randomised(model(seed=1))
    start = saved_run(tmp_path, monkeypatch, made)
    for keep in (False, True):
        fresh = model(seed=2)
        before = fresh.policy.weight.clone()
        take(fresh, start | {"keep_head": keep})
        for layer, theirs in zip(fresh.backbone.layers, made.backbone.layers, strict=True):
            assert torch.equal(layer["critic"].weight, theirs["critic"].weight)
        expected = made.policy.weight if keep else before
        assert torch.equal(fresh.policy.weight, expected)
    with pytest.raises(DataError, match="does not fit its own model.*policy.weight"):
        take(model(n=5), start | {"keep_head": True})
