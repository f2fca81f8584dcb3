"""Language models: a causal LM of transformers with its tokenizer, masks and positions explicit.

Shapes  ids int64 [B, L], mask bool or int [B, L] (0 where a row is padded, on either side),
        logits float32 [B, L, V]; logits at t score the token at t+1
Masks   positions count a row's own tokens, cumsum(mask) - 1 and 0 on padding, and are always
        given together with the mask: a learned position embedding reads the same position
        wherever the padding is (transformers would count padding, too)
Dtypes  logits are float32 in any precision, so that a log-softmax is taken in float32
Dropout is 0 in every model, so that what is sampled from (evaluation mode) is what is trained
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl.errors import BadValue
from cl.objectives._tokens import token_logp
from cl.tokenizers import Tokenizer

NOWHERE = -1  # stands for no token, where rows are compared


class LanguageModel(nn.Module):
    """lm: a causal LM of transformers; its vocabulary may be larger than the tokenizer's.

    context: the most tokens that a row may have. architecture: what `cl.models.rebuild` makes it
    again from, put in by `cl.models.build`.
    """

    def __init__(self, lm: nn.Module, tokenizer: Tokenizer, context: int):
        super().__init__()
        self.lm, self.tokenizer, self.context = lm, tokenizer, context
        self.architecture: dict | None = None

    def forward(self, ids: Tensor, mask: Tensor, keep: int = 0) -> Tensor:
        """Logits [B, L, V], of the last `keep` positions alone if that is not 0."""
        mask = mask.long()
        some = {"logits_to_keep": keep} if keep else {}
        where = positions(mask)
        done = self.lm(
            input_ids=ids, attention_mask=mask, position_ids=where, use_cache=False, **some
        )
        return done.logits.float()

    def answered(self, ids: Tensor, mask: Tensor, left: int) -> Tensor:
        """Logits [B, L - left + 1, V] of the columns from `left` - 1 on, with gradients.

        The columns before `left` are prompts that end there. Rows that have the same one share its
        pass through the model: what `forward` gives with `keep`, for less.
        """
        ids = ids.masked_fill(mask == 0, NOWHERE)
        prompts, row = torch.unique(ids[:, :left], dim=0, return_inverse=True)
        slides = getattr(self.lm.config, "sliding_window", None) is not None
        if 2 * len(prompts) > len(ids) or left == ids.shape[1] or slides:
            return self(ids.clamp(min=0), mask, keep=ids.shape[1] - left + 1)
        own, mask = (prompts != NOWHERE).long(), mask.long()
        begun = self.lm(
            input_ids=prompts.clamp(min=0),
            attention_mask=own,
            position_ids=positions(own),
            use_cache=True,
            logits_to_keep=1,
        )
        begun.past_key_values.batch_select_indices(row)  # each row gets its prompt's
        done = self.lm(
            input_ids=ids[:, left:].clamp(min=0),
            attention_mask=mask,
            position_ids=positions(mask)[:, left:],
            past_key_values=begun.past_key_values,
            use_cache=True,
        )
        return torch.cat([begun.logits[row], done.logits], 1).float()


def positions(mask: Tensor) -> Tensor:
    """Position of every token in its row: cumsum(mask) - 1, and 0 on padding. [B, L]"""
    return (mask.cumsum(1) - 1).clamp(min=0) * mask


def next_logp(model: LanguageModel, ids: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of every token but the first, given those before it: float32 [B, L-1].

    Column t belongs to ids[:, t+1]; what stands on padding has no meaning.
    """
    return token_logp(model(ids, mask)[:, :-1], ids[:, 1:], temperature)


def text_only(shown: str, input_shape: tuple[int, ...]) -> None:
    """Refuse inputs that are no text: a text stream's rows have no shape. Raises BadValue."""
    if len(input_shape):
        raise BadValue(
            f"{shown} is a language model, the stream's inputs are {list(input_shape)}; it goes "
            "with a stream of the llm domain"
        )
