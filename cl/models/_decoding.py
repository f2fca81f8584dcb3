"""Decoding: a batch of prompts of a language model, advanced by one token at a time.

`Decoder` works on any causal LM of transformers. `LlamaDecoder` does the same sums for models
built like Llama, without what transformers does around them at every step, which takes as long as
a small model's own arithmetic: caches have their full length from the start instead of being
copied longer, and one mask serves all steps. Both leave the first pass, the prompts, to the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cl.models.language import LanguageModel, positions

LLAMAS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")  # classes of transformers
ROPES = ("default", "linear", "llama3", "yarn")  # whose angles do not depend on the length


class Decoder:
    """n rows per prompt in decoding: the cache, its mask, and logits [b, V] of the next token.

    ids, mask [B, P]: prompts, padded on the left; steps: the most tokens that will follow. The
    cache stays that of the prompts until a first token comes, so that a row which ends with it
    costs nothing.
    """

    def __init__(self, model: LanguageModel, ids: Tensor, mask: Tensor, n: int, steps: int):
        self.lm, mask = model.lm, mask.long()
        done = self.lm(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits = done.logits[:, -1].repeat_interleave(n, 0)
        self.mask = mask.repeat_interleave(n, 0)
        self.at = self.mask.sum(1, keepdim=True)  # position of the next token [b, 1]
        self.cache, self.n, self.steps = done.past_key_values, n, steps
        self.rows: Tensor | None = None  # those that were selected before the cache is expanded
        self.held = False

    def _hold(self) -> None:
        """Expand the prompts' cache to the rows that go on."""
        if self.rows is None:
            self.cache.batch_repeat_interleave(self.n)
        else:
            self.cache.batch_select_indices(self.rows // self.n)

    def select(self, index: Tensor) -> None:
        """Go on with the rows at positions `index` alone."""
        self.mask, self.at = self.mask[index], self.at[index]
        if self.held:
            self._select(index)
        else:
            self.rows = index if self.rows is None else self.rows[index]

    def _select(self, index: Tensor) -> None:
        self.cache.batch_select_indices(index)

    def advance(self, tokens: Tensor) -> None:
        """Append one token [b] to every row."""
        if not self.held:
            self._hold()
            self.held = True
        self._advance(tokens)

    def _advance(self, tokens: Tensor) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        done = self.lm(
            input_ids=tokens.unsqueeze(1),
            attention_mask=self.mask,
            position_ids=self.at,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits, self.at = done.logits[:, -1], self.at + 1


class LlamaDecoder(Decoder):
    """The same for LLAMAS. keys, values [layers, b, heads of keys, P + steps, d]."""

    def _hold(self) -> None:
        cache, n, steps = self.cache, self.n, self.steps
        self.length = self.mask.shape[1]  # columns that are filled

        # cos and sin of every position that can come [P + steps, d]
        every = torch.arange(self.length + steps, device=self.at.device).unsqueeze(0)
        cos, sin = self.lm.model.rotary_emb(self.logits, position_ids=every)
        self.angles = cos[0], sin[0]
        batch, heads, _, width = cache.layers[0].keys.shape
        rows = (batch, n) if self.rows is None else (len(self.rows), 1)
        sizes = (len(cache.layers), *rows, heads, self.length + steps, width)
        self.keys, self.values = self.logits.new_empty(sizes), self.logits.new_empty(sizes)
        for k, layer in enumerate(cache.layers):  # copied once, to every row of a prompt
            for held, made in ((self.keys, layer.keys), (self.values, layer.values)):
                made = made if self.rows is None else made[self.rows // n]
                held[k, ..., : self.length, :] = made.unsqueeze(1)
        self.keys, self.values = self.keys.flatten(1, 2), self.values.flatten(1, 2)
        self.cache = None
        self.bias = None  # what is added to attention: -inf on padding [b, 1, 1, P + steps]
        if not self.mask.all():
            bias = self.logits.new_zeros(len(self.mask), 1, 1, self.length + steps)
            self.bias = bias
            bias[:, 0, 0, : self.length].masked_fill_(self.mask == 0, float("-inf"))

    def _select(self, index: Tensor) -> None:
        self.keys, self.values = self.keys[:, index], self.values[:, index]
        self.bias = None if self.bias is None else self.bias[index]

    def _advance(self, tokens: Tensor) -> None:
        body = self.lm.model
        x = body.embed_tokens(tokens)  # [b, D]
        cos, sin = (table[self.at] for table in self.angles)  # [b, 1, d]
        self.length += 1
        for k, layer in enumerate(body.layers):
            x = x + self._attention(k, layer.self_attn, layer.input_layernorm(x), cos, sin)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        self.logits, self.at = self.lm.lm_head(body.norm(x)), self.at + 1

    def _attention(self, k: int, part: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Layer k's attention of the new tokens [b, D] over all columns that are filled."""
        b, width, here = len(x), part.head_dim, self.length
        both = torch.cat([part.q_proj(x), part.k_proj(x)], 1).view(b, -1, width)
        heads = self.keys[k].shape[1]
        q, new = turned(both, cos, sin).split([both.shape[1] - heads, heads], 1)  # [b, heads, d]
        self.keys[k][:, :, here - 1] = new
        self.values[k][:, :, here - 1] = part.v_proj(x).view(b, -1, width)
        keys, values = self.keys[k][:, :, :here], self.values[k][:, :, :here]
        bias = None if self.bias is None else self.bias[..., :here]
        q = q.reshape(b, heads, -1, width)  # query heads that share keys: rows of a product
        return part.o_proj(attend(q, keys, values, bias).reshape(b, -1))


def attend(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q keys^T / sqrt(d) + bias) values: q [b, h, g, d], keys and values [b, h, L, d]."""
    if q.dtype != torch.float32 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias)
    # for one query CPUs take a third less time with plain products
    scores = torch.matmul(q * q.shape[-1] ** -0.5, keys.transpose(2, 3))
    return torch.matmul((scores if bias is None else scores + bias).softmax(-1), values)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x [b, heads, d] turned by angles whose cos and sin are [b, 1, d]."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def decoder(model: LanguageModel, ids: Tensor, mask: Tensor, n: int, steps: int) -> Decoder:
    """The decoder that fits a model."""
    config, kind = model.lm.config, type(model.lm)
    known = kind.__name__ in LLAMAS and kind.__module__.startswith("transformers.")
    full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    slides = getattr(config, "sliding_window", None) is not None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    fixed = rope.get("rope_type", "default") in ROPES
    made = LlamaDecoder if known and full and not slides and fixed else Decoder
    return made(model, ids, mask, n, steps)
