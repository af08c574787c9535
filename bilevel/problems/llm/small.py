"""A small language model to fine-tune, trained here on the embedded corpus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bilevel.errors import OptionError
from bilevel.extras import require
from bilevel.options import check_count, check_positive

FAMILIES = ("llama", "gpt_neox")
_END = "<|end|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int = 2048) -> Any:
    """A byte-level BPE tokenizer of ``transformers``, trained on texts."""
    tokenizers = require("tokenizers", "llm")
    transformers = require("transformers", "llm")
    check_count("vocabulary", vocabulary, least=257)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[_END], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=_END, pad_token=_END
    )


def small_model(
    family: str = "llama",
    vocabulary: int = 2048,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    context: int = 256,
    seed: int = 0,
) -> nn.Module:
    """A Llama or GPT-NeoX with random weights, its head untied from its embeddings.

    Raises
    ------
    OptionError
        Another family, or sizes that do not fit.
    """
    transformers = require("transformers", "llm")
    if family not in FAMILIES:
        raise OptionError(f"family={family!r}, expected one of {', '.join(FAMILIES)}")
    if hidden % heads:
        raise OptionError(f"hidden={hidden} is no multiple of heads={heads}")
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if family == "llama":
        inner = 16 * round(8 * hidden / 3 / 16)
        config = transformers.LlamaConfig(
            **sizes, intermediate_size=inner, num_key_value_heads=heads
        )
    else:
        config = transformers.GPTNeoXConfig(**sizes, intermediate_size=4 * hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


def pretrain_small(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    steps: int,
    *,
    batch_size: int = 16,
    length: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    report: Callable[[int, float], Any] | None = None,
) -> float:
    """Train all of a model on the next token of running text.

    Parameters
    ----------
    model, tokenizer
        Of ``transformers``; the model is trained in place.
    texts
        One after the other, each ended by the end-of-text token.
    steps
        Of AdamW, with a cosine schedule.
    batch_size, length
        Pieces of the text a step, and their tokens.
    lr, seed
        Peak learning rate; of the pieces.
    report
        Called with (step, loss) after each step.

    Returns
    -------
    float
        The mean loss of the last tenth of the steps, nats a token.
    """
    for name, count in (("steps", steps), ("batch_size", batch_size), ("length", length)):
        check_count(name, count)
    check_count("seed", seed, least=0)
    check_positive("lr", lr)
    end = tokenizer.eos_token_id
    ids = [token for text in tokenizer(list(texts))["input_ids"] for token in (*text, end)]
    stream = torch.tensor(ids, device=next(model.parameters()).device)
    if len(stream) <= length:
        raise OptionError(f"{len(stream)} tokens of text are too few for pieces of {length}")
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    model.train()
    for step in range(steps):
        warm = min(1.0, (step + 1) / (0.05 * steps + 1))
        rate = lr * warm * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate
        starts = torch.from_numpy(random.integers(len(stream) - length, size=batch_size))
        pieces = stream[starts[:, None].to(stream.device) + torch.arange(length + 1).to(stream)]
        loss = _next_token_loss(model, pieces)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if report is not None:
            report(step + 1, losses[-1])
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _next_token_loss(model: nn.Module, pieces: Tensor) -> Tensor:
    logits = model(input_ids=pieces[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), pieces[:, 1:].flatten())


def small_base(
    folder: str | Path,
    texts: Sequence[str],
    *,
    family: str = "llama",
    steps: int = 600,
    seed: int = 0,
    device: torch.device | str = "cpu",
    report: Callable[[int, float], Any] | None = None,
) -> tuple[nn.Module, Any]:
    """The embedded default: a small model and its tokenizer, trained on texts or read from disk.

    Parameters
    ----------
    folder
        Where it is saved in the format of ``transformers``, and read from the next time.
    texts
        To train tokenizer and model on.
    family, steps, seed, device, report
        As in :func:`small_model` and :func:`pretrain_small`.
    """
    transformers = require("transformers", "llm")
    folder = Path(folder)
    if not (folder / "model.safetensors").is_file():  # which is written last
        tokenizer = train_tokenizer(texts)
        model = small_model(family, len(tokenizer), seed=seed).to(device)
        pretrain_small(model, tokenizer, texts, steps, seed=seed, report=report)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)  # type: ignore[operator]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model.to(device), transformers.AutoTokenizer.from_pretrained(folder)
