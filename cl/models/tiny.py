"""tiny: a Llama of 0.87 M parameters over characters, for texts of up to 96.

4 layers of width 128 with 4 heads, SwiGLU of width 384, RoPE, RMSNorm; 64 symbols; no dropout.
The head is not tied to the embedding: it is 1 % of the parameters, and methods that choose
modules (fpf, hft, lora) find a head and an embedding as in larger models.

Weights   cl/models/weights/tiny.safetensors, as `cl pretrain tiny` makes it
Parameters
    pretrained  start from the weights that are shipped; false draws them afresh
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from cl.errors import BadValue
from cl.models.language import LanguageModel, text_only
from cl.registry import register
from cl.tokenizers import CharTokenizer

WEIGHTS = Path(__file__).parent / "weights" / "tiny.safetensors"
CONTEXT = 96


@register
def tiny(input_shape: tuple[int, ...], *, pretrained: bool = True) -> LanguageModel:
    """The embedded language model."""
    text_only("tiny", input_shape)
    if pretrained and not WEIGHTS.is_file():
        raise BadValue(
            f"model tiny has no pretrained weights here ({WEIGHTS} is missing): "
            "`cl pretrain tiny` makes them, model.pretrained=false draws them afresh"
        )
    model = LanguageModel(_llama(), CharTokenizer(), CONTEXT)
    if pretrained:
        from safetensors.torch import load_file

        model.lm.load_state_dict(load_file(WEIGHTS))  # kept in 16 bits, read into float32
    return model


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = CharTokenizer()
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=None,  # else its embedding would get no gradient and start at zero
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_ids[0],
    )
    return LlamaForCausalLM(config)
