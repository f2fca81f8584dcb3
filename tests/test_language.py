"""Language models, tokenizers, the sampler; pins as numbered in the reference on post-training."""

import copy
import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_weights, make_loop, tiny_stream, weights
from torch import nn

from cl import checkpoint
from cl.errors import BadValue, DataError, RunError
from cl.models import build, grow, rebuild
from cl.models.anatomy import anatomy, blocks
from cl.models.language import LanguageModel, next_logp, positions, token_logp
from cl.objectives._policy_gradient import advantages, clipped
from cl.objectives._tokens import aggregate
from cl.request import Request
from cl.sampling import Rollout, completion_logp, left_padded, sample, truncate
from cl.seeding import global_state, seed_globals
from cl.start import adopted
from cl.state import restore_model
from cl.tokenizers import CHARACTERS, CharTokenizer, HFTokenizer

ROOT = Path(__file__).parents[1]
PROMPTS = ["a", "copy: abc", "reverse: a b c d e", "2+3="]
KINDS = ("llama", "qwen2", "gpt2")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0):
    seed_globals(seed)
    return livelier(build("tiny", (), {"pretrained": False}))


def livelier(model):
    """Weights five times as large: logits that differ, so that a wrong position shows."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(5)
    return model


def byte_tokenizer(**special):
    """A byte-level tokenizer without merges: 256 bytes and the special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", **special}
    names = [token for token in special.values() if token]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate([*letters, *names])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    given = {name: token for name, token in special.items() if token}
    return PreTrainedTokenizerFast(tokenizer_object=made, **given)


def config_of(kind, **changes):
    from transformers import GPT2Config, LlamaConfig, Qwen2Config

    ids = {"vocab_size": 264, "bos_token_id": None, "eos_token_id": 257, "pad_token_id": 256}
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    if kind == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids | changes)
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**size | ids | changes)


def saved(folder, kind="llama", tokenizer=None, **changes):
    """A checkpoint folder as save_pretrained writes it, weights at random."""
    from transformers import AutoModelForCausalLM

    seed_globals(1)
    lm = AutoModelForCausalLM.from_config(config_of(kind, **changes))
    livelier(lm).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: saved(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def models(folders):
    made = {kind: build(f"hf:{folder}", (), {}) for kind, folder in folders.items()}
    return made | {"tiny": tiny()}


def ids_of(model, prompts=PROMPTS):
    return [model.tokenizer.prompt_ids(prompt) for prompt in prompts]


def never_ends(model):
    """The same model with an eos that is never drawn, so that rows have full length."""
    made = copy.deepcopy(model)
    made.tokenizer = copy.copy(model.tokenizer)
    made.tokenizer.eos_ids = (10**6,)
    return made


# -- logits and log-probabilities ---------------------------------------------------------------


def alone(model, row):
    """Logits [L, V] of one row without padding, by transformers' own defaults."""
    model.lm.eval()
    with torch.no_grad():
        return model.lm(input_ids=torch.tensor([row])).logits[0].float()


@pytest.mark.parametrize("kind", ["tiny", *KINDS])
def test_g17_left_padding_changes_no_logit(models, kind):
    model, rows = models[kind].eval(), ids_of(models[kind])
    ids, mask = left_padded(rows, model.tokenizer.pad_id, "cpu")
    with torch.no_grad():
        padded = model(ids, mask)
    for k, row in enumerate(rows):
        torch.testing.assert_close(padded[k, -len(row) :], alone(model, row), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["tiny", *KINDS])
def test_g17_a_row_padded_on_both_sides_reads_the_same_positions(models, kind):
    model = models[kind].eval()
    row = ids_of(model)[2]
    ids = torch.full((1, len(row) + 7), model.tokenizer.pad_id)
    mask = torch.zeros_like(ids)
    ids[0, 3 : 3 + len(row)], mask[0, 3 : 3 + len(row)] = torch.tensor(row), 1
    with torch.no_grad():
        found = model(ids, mask)[0, 3 : 3 + len(row)]
    torch.testing.assert_close(found, alone(model, row), atol=1e-4, rtol=1e-4)


def test_g17_positions_count_a_rows_own_tokens_and_are_0_on_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = [[0, 0, 0, 1, 2], [0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert positions(mask).tolist() == expected


def test_g17_learned_positions_would_show_padding_that_is_counted(models):
    """The test above can fail: without explicit positions GPT-2's logits differ by far more."""
    model = models["gpt2"].eval()
    rows = ids_of(model)
    ids, mask = left_padded(rows, model.tokenizer.pad_id, "cpu")
    with torch.no_grad():
        wrong = model.lm(input_ids=ids, attention_mask=mask.long()).logits
        right = model(ids, mask)
    assert (wrong[0, -1] - right[0, -1]).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["tiny", *KINDS])
@pytest.mark.parametrize("shuffled", [False, True])
def test_answers_to_one_prompt_share_its_pass_and_get_the_same_logits_and_gradients(
    models, kind, shuffled, monkeypatch
):
    model = models[kind]
    rollout = sample(model, ids_of(model), n=5, max_new_tokens=7, rng=rng())
    order = torch.randperm(20, generator=rng()) if shuffled else torch.arange(20)
    ids, mask = rollout.ids[order], rollout.mask[order]
    left, weight = rollout.prompt_ids.shape[1], torch.randn(20, 8, 1, generator=rng())
    weight = (
        weight[:, : ids.shape[1] - left + 1]
        * torch.cat([mask[:, :1] | True, mask], 1)[:, left:, None]
    )
    rows, found = [], []
    forward = type(model.lm).forward
    monkeypatch.setattr(
        type(model.lm),
        "forward",
        lambda *a, **k: rows.append(len(k["input_ids"])) or forward(*a, **k),
    )
    for logits in (model.answered(ids, mask, left), model(ids, mask, keep=ids.shape[1] - left + 1)):
        (logits * weight).sum().backward()
        found.append((logits.detach(), [p.grad.clone() for p in model.parameters()]))
        model.zero_grad()
    assert rows == [4, 20, 20]
    (ours, grads), (theirs, others) = found
    torch.testing.assert_close(ours * (weight != 0), theirs * (weight != 0), atol=1e-4, rtol=1e-4)
    for grad, other in zip(grads, others, strict=True):
        torch.testing.assert_close(grad, other, atol=1e-4 * float(other.abs().max()), rtol=1e-3)


def test_prompts_that_no_two_rows_share_are_read_with_their_answers(models):
    model = models["tiny"]
    ids, mask = left_padded(ids_of(model), 0, "cpu")
    assert torch.equal(model.answered(ids, mask, ids.shape[1] - 3), model(ids, mask, keep=4))


def test_padded_rows_give_finite_gradients(models):
    for kind, model in models.items():
        ids, mask = left_padded(ids_of(model), model.tokenizer.pad_id, "cpu")
        next_logp(model, ids, mask)[:, -1].sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters()), kind
        model.zero_grad()


def test_g16_logits_at_t_score_the_token_at_t_plus_1(models):
    """A model that is a bigram table: layers add nothing, the head holds the table's rows."""
    model = copy.deepcopy(models["tiny"])
    size = model.tokenizer.vocab_size
    table = torch.randn(size, size, generator=rng())
    with torch.no_grad():
        for layer in model.lm.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        width = model.lm.config.hidden_size
        model.lm.model.embed_tokens.weight.copy_(torch.eye(size, width))
        # the norm divides a one-hot vector by its root mean square, 1 / sqrt(width)
        model.lm.lm_head.weight.zero_()
        model.lm.lm_head.weight[:, :size] = table.T / width**0.5
    ids = torch.tensor([[5, 9, 7, 20]])
    found = next_logp(model, ids, torch.ones_like(ids))[0]
    logp = table.double().numpy()
    logp = logp - np.log(np.exp(logp).sum(1, keepdims=True))
    expected = [logp[5, 9], logp[9, 7], logp[7, 20]]
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-3)
    assert abs(expected[0] - logp[9, 5]) > 1e-2  # the transposed table would be seen


def test_g13_temperature_divides_logits_in_sampler_and_trainer():
    logits = torch.randn(5, 7, generator=rng()) * 3
    ids = torch.tensor([0, 3, 6, 2, 2])
    for temperature in (0.5, 1.0, 2.0):
        z = logits.double().numpy() / temperature
        expected = z - np.log(np.exp(z).sum(1, keepdims=True))
        found = token_logp(logits, ids, temperature)
        np.testing.assert_allclose(found, expected[np.arange(5), ids], atol=1e-5)
    model = tiny()
    for temperature in (0.7, 1.5):
        rollout = sample(
            model, ids_of(model), n=4, max_new_tokens=8, temperature=temperature, rng=rng()
        )
        trained = completion_logp(model, rollout, temperature)
        torch.testing.assert_close(rollout.logp, trained.detach(), atol=1e-4, rtol=1e-4)
        other = completion_logp(model, rollout, 1.0)
        assert (rollout.logp - other).abs().max() > 0.05


def test_g14_without_truncation_every_symbol_is_drawn_and_with_it_logp_is_renormalised():
    logits = torch.randn(3, 60, generator=rng())
    assert torch.equal(truncate(logits, 0, 1.0), logits)
    for row, kept in zip(logits, truncate(logits, 5, 1.0), strict=True):
        best = set(row.numpy().argsort()[-5:])
        assert {k for k in range(60) if kept[k] > float("-inf")} == best
    for row, kept in zip(logits, truncate(logits, 0, 0.6), strict=True):
        p = np.exp(row.double().numpy())
        p /= p.sum()
        nucleus, reached = set(), 0.0
        for k in p.argsort()[::-1]:
            if reached >= 0.6:
                break
            nucleus.add(int(k))
            reached += p[k]
        assert {k for k in range(60) if kept[k] > float("-inf")} == nucleus
    model = tiny()
    rollout = sample(model, ids_of(model), n=8, max_new_tokens=6, top_k=3, rng=rng())
    trained = completion_logp(model, rollout).detach()
    assert (rollout.logp - trained)[rollout.completion_mask].min() > -1e-4  # never below
    assert (rollout.logp - trained).max() > 0.1
    with torch.no_grad():
        logits = model(rollout.ids, rollout.mask)[:, rollout.prompt_ids.shape[1] - 1 : -1]
    among = truncate(logits.flatten(0, 1), 3, 1.0)
    expected = token_logp(among, rollout.completion_ids.flatten()).view_as(rollout.logp)
    mask = rollout.completion_mask
    torch.testing.assert_close(rollout.logp[mask], expected[mask], atol=1e-4, rtol=1e-4)


def test_g14_a_symbol_of_probability_0_is_drawn_at_no_point():
    from cl.sampling import _Choice

    logits = torch.tensor([[-1.0, 2.0, -1.0, 2.0, -1.0]]).repeat(3, 1)
    draws = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    tokens, logp = _Choice(1.0, 2, 1.0, draws).take(logits, torch.arange(3), 0)
    assert tokens[0] == 1 and tokens[1] in (1, 3) and tokens[2] == 3
    torch.testing.assert_close(logp, torch.full((3,), math.log(0.5)))


def test_g14_samples_follow_the_model_over_the_whole_vocabulary():
    """Frequencies of the first token against its probabilities: chi-square over all symbols."""
    seed_globals(0)
    model = build("tiny", (), {"pretrained": False})
    prompt = ids_of(model)[1]
    probability = alone(model, prompt)[-1].softmax(-1).double().numpy()
    n = 20_000
    rollout = sample(model, [prompt], n=n, max_new_tokens=1, rng=rng())
    drawn = Counter(rollout.completion_ids[:, 0].tolist())
    assert len(drawn) == 64  # a default top_k of 50 would show
    chi = sum((drawn[k] - n * p) ** 2 / (n * p) for k, p in enumerate(probability))
    assert chi < 63 + 5 * math.sqrt(2 * 63)


@pytest.mark.parametrize("kind", ["tiny", *KINDS])
def test_g15_sampled_logp_is_teacher_forced_logp(models, kind):
    """With a cache, left padding and neighbours that end early, against a pass without any."""
    model = models[kind]
    rollout = sample(model, ids_of(model), n=5, max_new_tokens=12, rng=rng())
    trained = completion_logp(model, rollout).detach()
    torch.testing.assert_close(rollout.logp, trained, atol=1e-4, rtol=1e-5)
    for k in range(0, len(rollout), 3):
        prompt = rollout.prompt_ids[k][rollout.prompt_mask[k]].tolist()
        answer = rollout.completions()[k]
        logits = alone(model, prompt + answer)[len(prompt) - 1 : -1]
        expected = token_logp(logits, torch.tensor(answer))
        torch.testing.assert_close(rollout.logp[k, : len(answer)], expected, atol=1e-4, rtol=1e-5)


def test_g15_holds_to_1e_5_for_a_model_of_plain_scale():
    seed_globals(0)
    model = build("tiny", (), {"pretrained": False})
    rollout = sample(model, ids_of(model), n=8, max_new_tokens=16, rng=rng())
    trained = completion_logp(model, rollout).detach()
    assert (rollout.logp - trained).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["tiny", "qwen2", "gpt2"])
def test_g15_a_prompt_alone_and_in_a_batch_gives_the_same_tokens(models, kind):
    model = never_ends(models[kind])
    rows = ids_of(model)
    batch = sample(model, rows, max_new_tokens=10, greedy=True, rng=rng())
    for k, row in enumerate(rows):
        one = sample(model, [row], max_new_tokens=10, greedy=True, rng=rng())
        assert one.completion_ids[0].tolist() == batch.completion_ids[k].tolist()
        torch.testing.assert_close(one.logp[0], batch.logp[k], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["tiny", "gpt2"])
def test_g15_rows_that_end_early_change_no_neighbour(models, kind):
    """The same draws with an eos that drops rows and with one that never comes."""
    model, free = models[kind], never_ends(models[kind])
    ended = sample(model, ids_of(model), n=8, max_new_tokens=24, rng=rng(3))
    whole = sample(free, ids_of(model), n=8, max_new_tokens=24, rng=rng(3))
    lengths = ended.completion_mask.sum(1)
    assert len(set(lengths.tolist())) > 3  # some were dropped
    for k, length in enumerate(lengths):
        assert torch.equal(ended.completion_ids[k, :length], whole.completion_ids[k, :length])


def test_both_decoders_draw_the_same_tokens(models, monkeypatch):
    from cl.models import _decoding

    names = _decoding.LLAMAS
    for kind in ("tiny", "llama", "qwen2"):
        model = models[kind]
        kinds = []
        for known in (names, ()):
            monkeypatch.setattr(_decoding, "LLAMAS", known)
            ids, mask = left_padded(ids_of(model), 0, "cpu")
            kinds.append(type(_decoding.decoder(model, ids, mask, 2, 3)).__name__)
            kinds.append(sample(model, ids_of(model), n=6, max_new_tokens=20, rng=rng()))
        name, ours, other, theirs = kinds
        assert (name, other) == ("LlamaDecoder", "Decoder")
        assert torch.equal(ours.completion_ids, theirs.completion_ids)
        torch.testing.assert_close(ours.logp, theirs.logp, atol=1e-4, rtol=1e-5)


def test_models_whose_attention_slides_are_left_to_transformers(tmp_path):
    from cl.models import _decoding

    folder = saved(
        tmp_path, "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1
    )
    model = build(f"hf:{folder}", (), {})
    ids, mask = left_padded(ids_of(model), 0, "cpu")
    assert type(_decoding.decoder(model, ids, mask, 2, 3)) is _decoding.Decoder
    rollout = sample(model, ids_of(model), n=4, max_new_tokens=10, rng=rng())
    trained = completion_logp(model, rollout).detach()
    torch.testing.assert_close(rollout.logp, trained, atol=1e-4, rtol=1e-4)


def test_greedy_agrees_with_transformers_generate(models):
    for kind in ("tiny", "llama", "gpt2"):
        model = models[kind].eval()
        rows = ids_of(model)
        ours = sample(model, rows, max_new_tokens=12, greedy=True, rng=rng())
        for k, row in enumerate(rows):
            ids = torch.tensor([row])
            theirs = model.lm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=12,
                eos_token_id=list(model.tokenizer.eos_ids),
                pad_token_id=model.tokenizer.pad_id,
            )
            assert ours.completions()[k] == theirs[0, len(row) :].tolist(), kind


def test_g18_log_softmax_is_taken_in_float32_under_bf16(models, folders):
    model = models["tiny"]
    ids, mask = left_padded(ids_of(model), 0, "cpu")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = model(ids, mask)
        found = next_logp(model, ids, mask)
    assert logits.dtype == found.dtype == torch.float32
    expected = token_logp(logits[:, :-1].double().float(), ids[:, 1:])
    assert torch.equal(found, expected)
    half = build(f"hf:{folders['llama']}", (), {"dtype": "bfloat16"})
    ids, mask = left_padded(ids_of(half), 256, "cpu")
    assert half(ids, mask).dtype == torch.float32
    z = (torch.randn(4, 264, generator=rng()) * 5).bfloat16()
    exact = z.double().log_softmax(-1)[:, 7]
    torch.testing.assert_close(
        token_logp(z, torch.full((4,), 7)).double(), exact, atol=1e-5, rtol=0
    )


def test_g19_train_and_eval_logits_are_equal(models, tmp_path):
    drops = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    gpt2 = build(f"hf:{saved(tmp_path / 'g', 'gpt2', **drops)}", (), {})
    llama = build(f"hf:{saved(tmp_path / 'l', 'llama', attention_dropout=0.5)}", (), {})
    for model in (*models.values(), gpt2, llama):
        ids, mask = left_padded(ids_of(model), model.tokenizer.pad_id, "cpu")
        with torch.no_grad():
            assert torch.equal(model.train()(ids, mask), model.eval()(ids, mask))


# -- where completions end ----------------------------------------------------------------------


def test_g20_the_mask_includes_the_first_eos_and_nothing_after(models):
    for kind, model in models.items():
        rollout = sample(model, ids_of(model), n=16, max_new_tokens=24, rng=rng())
        eos, ended = set(model.tokenizer.eos_ids), 0
        rows = zip(rollout.completion_ids.tolist(), rollout.completion_mask.tolist(), strict=True)
        for k, (ids, mask) in enumerate(rows):
            length = sum(mask)
            assert mask == [True] * length + [False] * (len(mask) - length)
            assert not eos & set(ids[: length - 1]), kind
            assert (ids[length - 1] in eos) == (not rollout.truncated[k])
            assert ids[length:] == [model.tokenizer.pad_id] * (len(ids) - length)
            assert rollout.logp[k, length:].abs().sum() == 0
            ended += not rollout.truncated[k]
        assert ended > 0, kind
        assert rollout.completion_mask.any(0).all()  # no column of padding alone


def with_probability(model, token, probability=None):
    """The model with a head whose `token` has this probability in every place, others equal."""
    made = copy.deepcopy(model)
    head = made.lm.get_output_embeddings()
    with torch.no_grad():
        made.lm.model.norm.weight.zero_()  # hidden states of 0: logits are the bias
        head.weight.zero_()
    size = head.weight.shape[0]
    bias = torch.zeros(size)
    bias[token] = math.log(probability / (1 - probability) * (size - 1))
    head.bias = nn.Parameter(bias)
    return made


def test_g25_a_completion_of_eos_alone_is_legal(models):
    model = with_probability(models["tiny"], 2, 1 - 1e-9)
    rollout = sample(model, ids_of(model), n=2, max_new_tokens=5, rng=rng())
    assert rollout.completions() == [[2]] * 8
    assert rollout.completion_mask.shape == (8, 1) and rollout.completion_mask.all()
    assert not rollout.truncated.any()
    assert model.tokenizer.decode([2]) == "" and model.tokenizer.response_ids("") == [2]
    assert completion_logp(model, rollout).shape == (8, 1)


def test_g21_a_reward_for_stopping_raises_the_probability_of_the_end():
    """Hand-made completions of one prompt, rewarded where they end at once."""
    model = tiny()
    eos, other = model.tokenizer.eos_ids[0], 7
    prompt = torch.tensor([model.tokenizer.prompt_ids("a")] * 4)
    said = torch.tensor([[eos, 0], [other, eos], [eos, 0], [other, other]])
    mask = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 1]]).bool()
    whole = torch.ones_like(prompt).bool()
    group, truncated = torch.zeros(4).long(), torch.tensor([False, False, False, True])
    rollout = Rollout(prompt, whole, said, mask, torch.zeros(4, 2), truncated, group)
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])

    def chance():
        row = model(prompt[:1], whole[:1])[0, -1].log_softmax(-1)
        return row[eos].exp().item(), row[other].exp().item()

    before = chance()
    A, counted = advantages(rewards, group, "grpo")
    assert counted.all()
    loss, _ = clipped(completion_logp(model, rollout), None, A, mask, low=0.2, high=0.2)
    aggregate(loss, mask, "token_mean").backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-4 * p.grad
    after = chance()
    assert after[0] > before[0] and after[1] < before[1]


def test_lengths_are_those_of_a_geometric_distribution(models):
    model = with_probability(models["tiny"], 2, 0.2)
    rollout = sample(model, ids_of(model)[:1], n=4000, max_new_tokens=60, rng=rng())
    lengths = rollout.completion_mask.sum(1).double()
    assert abs(lengths.mean() - 5) < 4 * math.sqrt(20 / 4000)
    expected = math.log(0.2)
    last = rollout.logp[torch.arange(4000), lengths.long() - 1][~rollout.truncated]
    torch.testing.assert_close(last, torch.full_like(last, expected), atol=1e-5, rtol=0)


def test_g24_any_of_several_eos_ids_ends_a_response(models):
    model = copy.deepcopy(models["tiny"])
    model.tokenizer = copy.copy(model.tokenizer)
    model.tokenizer.eos_ids = (2, 7, 30)
    rollout = sample(model, ids_of(model), n=32, max_new_tokens=30, rng=rng())
    lasts = {
        ids[-1]
        for ids, cut in zip(rollout.completions(), rollout.truncated, strict=True)
        if not cut
    }
    assert lasts == {2, 7, 30}
    for ids in rollout.completions():
        assert not {2, 7, 30} & set(ids[:-1])
    assert model.tokenizer.response_ids("a")[-1] == 2


def test_g24_eos_ids_come_from_tokenizer_and_generation_settings(tmp_path):
    folder = saved(tmp_path, eos_token_id=[260, 257])
    model = build(f"hf:{folder}", (), {})
    assert model.tokenizer.eos_ids == (257, 260)  # the tokenizer's own first


def test_g23_truncated_rows_are_flagged_and_whole(models):
    model = with_probability(models["tiny"], 2, 0.3)
    rollout = sample(model, ids_of(model), n=32, max_new_tokens=3, rng=rng())
    full = rollout.completion_mask.sum(1) == 3
    assert rollout.truncated.any() and (rollout.truncated <= full).all()
    at_limit = full & ~rollout.truncated  # an eos in the last place is an end
    assert at_limit.any() and (rollout.completion_ids[at_limit, 2] == 2).all()


def test_g22_pad_is_not_eos_and_if_it_were_the_eos_would_be_kept(models, tmp_path):
    tokenizer = CharTokenizer()
    assert tokenizer.pad_id not in tokenizer.eos_ids
    folder = saved(tmp_path, tokenizer=byte_tokenizer(pad_token="</s>", eos_token="</s>"))
    model = build(f"hf:{folder}", (), {})
    assert model.tokenizer.pad_id == model.tokenizer.eos_ids[0]
    rollout = sample(model, ids_of(model), n=32, max_new_tokens=40, rng=rng())
    ended = ~rollout.truncated
    assert ended.any()
    for ids in [c for c, e in zip(rollout.completions(), ended, strict=True) if e]:
        assert ids.count(model.tokenizer.pad_id) == 1 and ids[-1] == model.tokenizer.pad_id


def test_limits_are_per_prompt(models):
    model = never_ends(models["tiny"])
    rollout = sample(model, ids_of(model), n=2, max_new_tokens=[3, 9, 1, 5], rng=rng())
    assert rollout.completion_mask.sum(1).tolist() == [3, 3, 9, 9, 1, 1, 5, 5]
    assert rollout.truncated.all() and rollout.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    trained = completion_logp(model, rollout).detach()
    torch.testing.assert_close(rollout.logp, trained, atol=1e-4, rtol=1e-5)


def test_equal_prompts_stay_two_groups(models):
    row = ids_of(models["tiny"])[0]
    assert sample(models["tiny"], [row, row], n=3, max_new_tokens=2, rng=rng()).group.tolist() == [
        *[0] * 3,
        *[1] * 3,
    ]


def test_g39_sampling_leaves_no_graph_and_no_global_draw(models):
    model = models["tiny"].train()
    before = global_state()
    generator = rng(5)
    rollout = sample(model, ids_of(model), n=3, max_new_tokens=4, rng=generator)
    after = global_state()
    assert torch.equal(before["torch"], after["torch"]) and before["python"] == after["python"]
    tensors = [value for value in vars(rollout).values() if isinstance(value, torch.Tensor)]
    assert not any(t.requires_grad or t.is_inference() for t in tensors)
    assert all(p.grad is None for p in model.parameters()) and model.training
    # the generator moves by what was asked for, whatever was drawn
    other = rng(5)
    torch.rand(12, 4, generator=other, dtype=torch.float64)
    assert torch.equal(generator.get_state(), other.get_state())
    again = sample(model, ids_of(model), n=3, max_new_tokens=4, rng=rng(5))
    assert torch.equal(rollout.completion_ids, again.completion_ids)
    different = sample(model, ids_of(model), n=3, max_new_tokens=4, rng=rng(6))
    assert not torch.equal(rollout.completion_ids, different.completion_ids)
    still = rng(7)
    sample(model, ids_of(model), max_new_tokens=4, greedy=True, rng=still)
    assert torch.equal(still.get_state(), rng(7).get_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature > 0"),
        ({"n": 0}, "n >= 1"),
        ({"top_p": 0.0}, "top_p"),
        (
            {"max_new_tokens": 90},
            "prompt 1 has 10 tokens and may get 90 more, the model's context is 96",
        ),
        ({"max_new_tokens": [1, 2]}, "2 limits of new tokens for 4 prompts"),
        ({"max_new_tokens": 0}, "both need 1"),
    ],
)
def test_what_cant_be_sampled_is_said_in_one_line(models, settings, message):
    with pytest.raises(BadValue, match=message):
        model = models["tiny"]
        sample(model, ids_of(model), **{"max_new_tokens": 4, "rng": rng(), **settings})


# -- tokenizers ---------------------------------------------------------------------------------


def test_the_character_tokenizer_is_a_fixed_bijection():
    tokenizer = CharTokenizer()
    assert tokenizer.vocab_size == 64 and len(set(CHARACTERS)) == len(CHARACTERS) == 61
    ids = tokenizer.encode(CHARACTERS)
    assert sorted(ids) == list(range(3, 64))
    assert tokenizer.decode(ids) == CHARACTERS
    assert tokenizer.prompt_ids("ab") == [1, 3, 4] and tokenizer.response_ids("ab") == [3, 4, 2]
    assert tokenizer.decode([1, 3, 2, 0, 4]) == "ab"  # special tokens dropped, no stop at eos
    with pytest.raises(DataError, match="character 'É' in 'caFÉ' is not|character 'F'"):
        tokenizer.encode("caFÉ")


@pytest.mark.parametrize("kind", KINDS)
def test_hf_tokenizers_keep_spaces_and_put_no_special_tokens(models, kind):
    tokenizer = models[kind].tokenizer
    text = "  Sum : 1 , 2\n don 't "
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.response_ids(text)[-1] == 257 == tokenizer.eos_ids[0]
    assert tokenizer.decode([257, *tokenizer.encode("a"), 256, *tokenizer.encode("b")]) == "ab"
    assert tokenizer.prompt_ids("ab") == tokenizer.encode("ab")  # it puts no bos itself


def test_bos_is_put_where_the_tokenizer_puts_one(tmp_path):
    from tokenizers import processors

    made = byte_tokenizer(bos_token="<s>")
    bos = made.convert_tokens_to_ids("<s>")
    plain = HFTokenizer(made, "x")
    assert plain.bos_id == bos and plain.prompt_ids("a") == plain.encode("a")
    made._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    begins = HFTokenizer(made, "x")
    assert begins.prompt_ids("a") == [bos, *begins.encode("a")]
    assert begins.encode("a") == plain.encode("a")


def test_a_chat_template_wraps_prompts_unless_told_otherwise(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    folder = saved(tmp_path, tokenizer=tokenizer)
    wrapped = build(f"hf:{folder}", (), {}).tokenizer
    assert wrapped.decode(wrapped.prompt_ids("hi")) == "[user] hi\n[assistant] "
    plain = build(f"hf:{folder}", (), {"template": False}).tokenizer
    assert plain.decode(plain.prompt_ids("hi")) == "hi"


# -- models -------------------------------------------------------------------------------------


def test_tiny_has_the_size_and_anatomy_it_says(models):
    model = models["tiny"]
    assert isinstance(model, LanguageModel) and model.context == 96
    total = sum(p.numel() for p in model.parameters())
    assert total == 869_504
    parts = anatomy(model)
    assert [p.name for p in parts] == [name for name, _ in model.named_parameters()]
    assert list(blocks(model).values()) == [f"lm.model.layers.{k}" for k in range(4)]
    roles = {"attention": {"q", "k", "v", "o"}, "feed_forward": {"gate", "up", "down"}}
    for layer in range(4):
        inside = [p for p in parts if p.layer == layer]
        for category, wanted in roles.items():
            assert {p.role for p in inside if p.category == category} == wanted
        assert sum(p.category == "norm" for p in inside) == 2 and len(inside) == 9
    outside = {p.name: p.category for p in parts if p.layer is None}
    assert outside == {
        "lm.model.embed_tokens.weight": "embedding",
        "lm.model.norm.weight": "norm",
        "lm.lm_head.weight": "head",
    }
    bytes_16 = 2 * total
    assert bytes_16 < 3 * 2**20  # what its weights may weigh in the package


@pytest.mark.parametrize("kind", KINDS)
def test_anatomy_of_hf_models(models, kind):
    model = models[kind]
    parts = anatomy(model)
    categories = Counter(p.category for p in parts)
    assert {p.layer for p in parts} == {None, 0, 1}
    assert categories["other"] == 0 and categories["conv"] == 0
    attention = {p.role for p in parts if p.category == "attention"} - {"bias"}
    assert attention == ({"qkv", "o"} if kind == "gpt2" else {"q", "k", "v", "o"})
    heads = [p.name for p in parts if p.category == "head"]
    assert heads == ([] if kind == "gpt2" else ["lm.lm_head.weight"])  # a tied head: embedding
    embeddings = [p.name for p in parts if p.category == "embedding"]
    assert len(embeddings) == (2 if kind == "gpt2" else 1)
    assert model.context == 64


@pytest.mark.parametrize("kind", ["tiny", *KINDS])
def test_rebuilt_snapshots_and_checkpoints_hold_the_same_model(models, folders, kind, tmp_path):
    model = models[kind]
    architecture = json.loads(json.dumps(model.architecture))  # what a checkpoint stores
    again = rebuild(architecture)
    assert again.architecture == model.architecture
    different = [
        name
        for name, t in again.state_dict().items()
        if not torch.equal(t, model.state_dict()[name])
    ]
    assert different  # no weights were loaded
    again.load_state_dict(model.state_dict())
    ids, mask = left_padded(ids_of(model), model.tokenizer.pad_id, "cpu")
    with torch.no_grad():
        assert torch.equal(again.eval()(ids, mask), model.eval()(ids, mask))
    snapshot = checkpoint.as_snapshot(copy.deepcopy(model))
    if kind != "tiny":
        assert snapshot.tokenizer is model.tokenizer
    tensors = {}
    packed = json.loads(json.dumps(checkpoint.pack({"old": snapshot}, tensors, "state")))
    restored = checkpoint.unpack(packed, tensors, torch.device("cpu"))["old"]
    with torch.no_grad():
        assert torch.equal(restored(ids, mask), model(ids, mask))
    assert not any(p.requires_grad for p in restored.parameters())
    saved_in = checkpoint.save(tmp_path, "000000001-00", checkpoint.content(model, {"a": 1}))
    weights, document, _ = checkpoint.load(saved_in, torch.device("cpu"))
    fresh = rebuild(document["model"]["architecture"])
    fresh.load_state_dict(weights)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(ids, mask), model(ids, mask))


def test_a_language_model_has_no_head_that_grows(models):
    model = models["tiny"]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    grow(model, 10_000)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def loop_with(model):
    """A loop that trains nothing: what it does with a model besides."""
    return make_loop([], model=lambda: model)


@pytest.mark.parametrize("kind", ["tiny", "llama"])
def test_loops_copy_restart_and_restore_language_models(models, kind):
    model = copy.deepcopy(models[kind])
    loop = loop_with(model)
    ids, mask = left_padded(ids_of(model), model.tokenizer.pad_id, "cpu")
    snapshot = loop.snapshot()
    with torch.no_grad():
        assert torch.equal(snapshot(ids, mask), model.eval()(ids, mask))
    before = torch.get_rng_state()
    one, other = (loop.fresh_model("a.fresh", trained=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    same = loop_with(model).fresh_model("a.fresh", trained=False)
    assert_same_weights(weights(one), weights(same))
    assert not torch.equal(one.lm.lm_head.weight, other.lm.lm_head.weight)
    given = loop.fresh_model("a.fresh")  # of the weights that the run started from, if any
    same = torch.equal(given.lm.lm_head.weight, model.lm.lm_head.weight)
    assert same == model.architecture["kwargs"].get("pretrained", True)
    frozen_part = {name: not name.endswith("norm.weight") for name, _ in model.named_parameters()}
    description = {"architecture": model.architecture, "requires_grad": frozen_part}
    resumed = loop_with(rebuild(model.architecture))
    restore_model(resumed, weights(model), description, learned=2)
    assert_same_weights(weights(resumed.model), weights(model))
    assert {n: p.requires_grad for n, p in resumed.model.named_parameters()} == frozen_part
    other = {**model.architecture, "kwargs": {"pretrained": True}}
    with pytest.raises(RunError, match="another one"):
        restore_model(resumed, weights(model), {**description, "architecture": other | {"x": 1}}, 1)


def test_a_language_model_starts_where_a_run_ended(models, tmp_path):
    model = models["tiny"]
    checkpoint.save(tmp_path / "checkpoint", "000000001-00", checkpoint.content(model, {}))
    start = {"from": str(tmp_path)}
    made = build("tiny", (), {"pretrained": False}, start=start)
    assert_same_weights(weights(made), weights(model))
    again = rebuild(json.loads(json.dumps(made.architecture)), trained=True)
    assert_same_weights(weights(again), weights(model))
    stream = tiny_stream()
    stream.input_shape = ()
    request = Request.of("split_digits", "naive", {"model.from": str(tmp_path)})
    taken = adopted(request, stream)
    assert taken.top["model"] == "tiny" and taken.given["model"] == {"pretrained": False}
    keeps = {"model.from": str(tmp_path), "model.keep_head": True}
    with pytest.raises(BadValue, match="has no head to keep"):
        adopted(Request.of("split_digits", "naive", keeps), stream)


def test_hf_dtype_is_that_of_the_weights(folders):
    for dtype in ("float32", "bfloat16"):
        model = build(f"hf:{folders['qwen2']}", (), {"dtype": dtype})
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
        rollout = sample(model, ids_of(model), n=2, max_new_tokens=5, rng=rng())
        assert rollout.logp.dtype == torch.float32 and torch.isfinite(rollout.logp).all()
        again = rebuild(model.architecture)
        again.load_state_dict(model.state_dict())
        assert {p.dtype for p in again.parameters()} == {getattr(torch, dtype)}


def test_a_drawn_hf_model_has_other_weights_and_the_same_shape(folders):
    one = build(f"hf:{folders['llama']}", (), {})
    other = build(f"hf:{folders['llama']}", (), {"pretrained": False})
    assert {n: t.shape for n, t in one.state_dict().items()} == {
        n: t.shape for n, t in other.state_dict().items()
    }
    assert not torch.equal(one.lm.lm_head.weight, other.lm.lm_head.weight)


def refused(name, settings=None, error=DataError):
    with pytest.raises(error) as caught:
        build(name, (), settings or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_language_model_is_refused_in_one_line(tmp_path, folders):
    from transformers import BertConfig, BertForMaskedLM, LlamaModel, ViTConfig, ViTModel

    assert "no folder" in refused("hf:/no/such/folder")
    assert "no folder" in refused("hf:./nothing")
    assert "model.download=true fetches it" in refused("hf:someone/absent")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(f"hf:{tmp_path / 'empty'}")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(f"hf:{tmp_path / 'file'}")
    ViTModel(
        ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "vit")
    assert "no causal language model" in refused(f"hf:{tmp_path / 'vit'}", error=BadValue)
    small = BertConfig(
        vocab_size=264,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    BertForMaskedLM(small).save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    assert "no causal language model" in refused(f"hf:{tmp_path / 'bert'}", error=BadValue)
    LlamaModel(config_of("llama")).save_pretrained(tmp_path / "headless")
    byte_tokenizer().save_pretrained(tmp_path / "headless")
    assert "they lack lm_head.weight" in refused(f"hf:{tmp_path / 'headless'}")


def test_a_folder_that_is_damaged_or_incomplete_is_refused_in_one_line(tmp_path):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(config_of("llama")).save_pretrained(tmp_path / "bare")
    assert "tokenizer" in refused(f"hf:{tmp_path / 'bare'}")
    folder = saved(tmp_path / "cut")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    assert "can't be loaded" in refused(f"hf:{folder}")
    folder = saved(tmp_path / "json")
    (folder / "config.json").write_text("{")
    assert "can't be loaded" in refused(f"hf:{folder}")
    folder = saved(tmp_path / "gone")
    (folder / "model.safetensors").unlink()
    assert "can't be loaded" in refused(f"hf:{folder}")
    folder = saved(tmp_path / "narrow", vocab_size=258, eos_token_id=257)
    byte_tokenizer(bos_token="<s>").save_pretrained(folder)
    assert "has 259 tokens, its model 258" in refused(f"hf:{folder}")


def test_a_tokenizer_without_pad_token_is_refused_unless_one_is_named(tmp_path):
    folder = saved(tmp_path, tokenizer=byte_tokenizer(pad_token=None), pad_token_id=None)
    said = refused(f"hf:{folder}", error=BadValue)
    assert "names no pad token; give model.pad=TOKEN" in said and "</s>" in said
    model = build(f"hf:{folder}", (), {"pad": "</s>"})
    assert model.tokenizer.pad_id == model.tokenizer.eos_ids[0]
    assert "model.pad=<none> is no token" in refused(
        f"hf:{folder}", {"pad": "<none>"}, error=BadValue
    )


def test_a_tokenizer_without_eos_token_is_refused(tmp_path):
    tokenizer = byte_tokenizer(eos_token=None)
    folder = saved(tmp_path, tokenizer=tokenizer, eos_token_id=None)
    assert "no eos token" in refused(f"hf:{folder}", error=BadValue)


def test_tiny_without_its_weights_says_how_to_get_them(monkeypatch, tmp_path):
    from safetensors.torch import save_file

    from cl.models import tiny as module

    monkeypatch.setattr(module, "WEIGHTS", tmp_path / "tiny.safetensors")
    said = refused("tiny", error=BadValue)
    assert "cl pretrain tiny" in said and "model.pretrained=false" in said
    trained = tiny(3).lm.state_dict()
    save_file({n: t.half() for n, t in trained.items()}, tmp_path / "tiny.safetensors")
    model = build("tiny", (), {})
    for name, tensor in model.lm.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, trained[name].half().float())
    drawn = rebuild(model.architecture)
    assert not torch.equal(drawn.lm.lm_head.weight, model.lm.lm_head.weight)
    kept = rebuild(model.architecture, trained=True)
    assert torch.equal(kept.lm.lm_head.weight, model.lm.lm_head.weight)


@pytest.mark.parametrize("model", ["tiny", "hf:X"])
def test_images_are_refused_by_language_models(model):
    with pytest.raises(BadValue, match=r"is a language model, the stream's inputs are \[1, 8, 8\]"):
        build(model, (1, 8, 8), {"pretrained": False})


def test_listing_and_describing_language_models_imports_no_torch(folders):
    code = (
        "import sys\nfrom cl.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as stop: assert not stop.code\n"
        "loaded = {'torch', 'transformers', 'tokenizers'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    hf = f"hf:{folders['llama']}"
    for arguments in (["list", "models"], ["describe", "tiny"], ["describe", hf]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert ("hf:NAME" in done.stdout) or "pretrained" in done.stdout


def test_vision_models_do_not_import_transformers():
    code = (
        "import sys\nfrom cl.models import build\nimport cl.runner\n"
        "build('small_cnn', (1, 8, 8), {})\nassert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
