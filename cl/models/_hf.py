"""hf:NAME: a causal language model of transformers, with its tokenizer.

NAME is a folder as `save_pretrained` writes it, model and tokenizer together, or the name
of a model on the Hugging Face hub that is in this machine's cache.

Weights   all of the model's, strictly: a folder whose weights lack some is refused
Prompts   in the tokenizer's chat template, as a user's turn, if it has one
Departs   every dropout is 0, so that sampling and training see one policy; code that comes with a
          model is never run
Parameters
    pretrained  load the weights; false draws them afresh after the configuration
    dtype       of the weights: float32 or bfloat16, which halves memory but loses small updates
                (below 1/512 of a weight): for frozen weights under lora.*; to train all of them
                keep float32 and set train.precision=bf16
    download    fetch what is missing from the Hugging Face hub
    template    put prompts into the tokenizer's chat template, if it has one
    pad         token that pads, for a tokenizer that names none
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import nn

from cl.errors import BadValue, DataError
from cl.models.language import LanguageModel, text_only
from cl.seeding import frozen
from cl.tokenizers import HFTokenizer

# what transformers raises for files that it can't use
REFUSALS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


def hf(
    name: str,
    input_shape: tuple[int, ...],
    *,
    pretrained: bool = True,
    dtype: Literal["float32", "bfloat16"] = "float32",
    download: bool = False,
    template: bool = True,
    pad: str | None = None,
) -> LanguageModel:
    """A causal LM of transformers."""
    shown = f"hf:{name}"
    text_only(shown, input_shape)
    source = _source(name, shown)
    with _quiet():
        config = _config(source, shown, download)
        tokenizer = _tokenizer(source, shown, download)
        lm = _weights(source, shown, config, getattr(torch, dtype), download, pretrained)
    ends = (config.eos_token_id, lm.generation_config.eos_token_id)
    rows = lm.get_input_embeddings().num_embeddings
    ids = [k for end in ends for k in (end if isinstance(end, list) else [end])]
    ids = [k for k in ids if k is not None and k < rows]
    wrapped = HFTokenizer(tokenizer, shown, pad=pad, template=template, eos_ids=ids)
    if wrapped.vocab_size > rows:
        raise DataError(
            f"the tokenizer of {shown} has {wrapped.vocab_size} tokens, its model {rows}"
        )
    if pretrained:
        _refuse_unless_causal(lm, shown)
    return LanguageModel(lm.train(), wrapped, _context(config))


def _source(name: str, shown: str) -> str:
    """The folder, or the hub's name. Raises DataError for a folder that can't be meant."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(
                f"{shown}: the folder holds no config.json; it must be one that save_pretrained "
                "has written"
            )
        return str(path)
    if path.exists():
        raise DataError(f"{shown} is a file; give the folder that save_pretrained has written")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise DataError(f"{shown}: no folder {path}")
    return name


def _config(source: str, shown: str, download: bool):
    """The configuration with every dropout 0. Raises DataError, BadValue."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with _refused(shown, download):
        try:
            config = AutoConfig.from_pretrained(
                source, local_files_only=not download, trust_remote_code=False
            )
        except OSError as error:
            if download or Path(source).is_dir():
                raise
            raise DataError(
                f"{shown}: no folder of that name, and no model in this machine's Hugging Face "
                "cache; model.download=true fetches it"
            ) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        kind = (config.architectures or [config.model_type])[0]
        raise BadValue(f"{shown} is no causal language model but a {kind}")
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for key, value in vars(part).items():
            if ("dropout" in key or "pdrop" in key) and isinstance(value, int | float):
                setattr(part, key, 0.0)
    return config


def _tokenizer(source: str, shown: str, download: bool):
    from transformers import AutoTokenizer

    with _refused(f"the tokenizer of {shown}", download):
        return AutoTokenizer.from_pretrained(
            source, local_files_only=not download, trust_remote_code=False
        )


def _weights(
    source: str, shown: str, config, dtype: torch.dtype, download: bool, pretrained: bool
) -> nn.Module:
    """The model, with its weights or drawn afresh. Raises DataError."""
    from transformers import AutoModelForCausalLM

    with _refused(shown, download):
        if not pretrained:
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        lm, report = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            local_files_only=not download,
            trust_remote_code=False,
            output_loading_info=True,
        )
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise DataError(
            f"the weights of {shown} are not those of a causal language model: they lack "
            f"{lacking[0]}" + f" and {len(lacking) - 1} more" * (len(lacking) > 1)
        )
    return lm


def _refuse_unless_causal(lm: nn.Module, shown: str) -> None:
    """BadValue if what comes later changes what a model says before."""
    last = lm.get_input_embeddings().num_embeddings - 1
    with frozen(lm):
        rows = torch.tensor([[0, 1, 2], [0, 1, last]])
        one, other = lm(input_ids=rows, use_cache=False).logits.float()
    moved = (one - other).abs().amax(1)  # by position
    if moved[:2].max() > 1e-4 * moved[2]:
        raise BadValue(f"{shown} is no causal language model: its tokens see the ones after them")


def _context(config) -> int:
    """Tokens that a row may have; 2^31 for a model that names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31


@contextmanager
def _refused(shown: str, download: bool) -> Iterator[None]:
    """An error of transformers as one line that says what can be done."""
    try:
        yield
    except REFUSALS as error:
        why = " ".join(str(error).split()) or type(error).__name__
        why = why if len(why) <= 200 else f"{why[:200]}…"
        here = "" if download else " (nothing is downloaded unless model.download=true)"
        raise DataError(f"{shown} can't be loaded{here}: {why}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no warnings of transformers while it loads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
