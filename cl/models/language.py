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

from torch import Tensor, nn

from cl.errors import BadValue
from cl.objectives._tokens import token_logp
from cl.tokenizers import Tokenizer


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
