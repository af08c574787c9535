"""A causal language model as two levels: the backbone's LoRA weights and the output head."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.distributed import rank
from bilevel.domains.sharding import whole
from bilevel.errors import DatasetError, OptionError
from bilevel.extras import require
from bilevel.options import check_count, check_positive
from bilevel.problems.llm.batches import TokenBatch, TokenLoader
from bilevel.problems.llm.tokens import Item, Tokens, check_length, check_vocabulary

#: Relative difference of logits that low precision may make.
_AGREEMENT = 2e-2
#: What the scale of an adapter's weights depends on.
_SCALING = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
#: How names of floats that are rates of dropout end.
_DROPOUT = ("dropout", "layerdrop", "pdrop", "dropout_prob", "dropout_rate")
#: The same of hidden states; it is more by far where sequences see one another.
_SEPARATION = 5e-2


class TwoLevelModel(nn.Module):
    r"""A causal language model :math:`\pi(t \mid \cdot) = \operatorname{softmax}(W\, h_x(\cdot))`.

    x are LoRA weights (arXiv:2106.09685) in the backbone's projections, y is the head W, untied
    from the embeddings where the model ties them; everything else is frozen. Dropout is switched
    off, so that features computed once serve both levels' updates and the reference model.

    Parameters
    ----------
    model
        A causal language model of ``transformers``; it is changed in place.
    rank, alpha
        Of LoRA: r and α.
    targets
        Names of the adapted modules; by default those that ``peft`` knows for the family, such as
        ``query_key_value`` of GPT-NeoX, ``q_proj`` and ``v_proj`` of Llama and Qwen.
    seed
        Of LoRA's start.
    autocast
        Precision of the products, such as ``torch.bfloat16``, in training, evaluation and as the
        reference alike; that of the weights by default.

    Attributes
    ----------
    adapted
        The ``peft`` model.
    backbone
        The model without its head. In several processes ``DistributedDataParallel(backbone)`` may
        take its place, or ``fully_shard`` be applied to it.

    Raises
    ------
    OptionError
        A family whose target modules are not known, a target that the model does not have, or a
        model whose logits are not those of a linear head on its last hidden states.
    DatasetError
        A model with NaN or infinite weights.
    """

    def __init__(
        self,
        model: nn.Module,
        rank: int = 16,
        alpha: float = 16.0,
        targets: Sequence[str] | None = None,
        seed: int = 0,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.autocast = autocast
        peft = require("peft", "llm")
        check_count("rank", rank)
        check_positive("alpha", alpha)
        head = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise OptionError(f"{type(model).__name__} has the output head {head}, expected a "
                              "linear layer without bias")  # fmt: skip
        name = next(name for name, each in model.named_modules() if each is head)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, lora_dropout=0.0,
            target_modules=None if targets is None else list(targets), modules_to_save=[name],
        )  # fmt: skip
        _switch_dropout_off(model)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about peft's calls
            torch.manual_seed(seed)
            try:
                self.adapted: Any = peft.get_peft_model(model, config)
            except ValueError as error:
                raise OptionError(
                    f"{type(model).__name__} cannot be adapted ({error}): name the modules, "
                    "targets=['q_proj', ...]"
                ) from error
        self._set_up(name)

    def _set_up(self, head: str) -> None:
        self.causal = self.adapted.get_base_model()
        self._head = self.causal.get_submodule(head)
        self.weight: nn.Parameter = self._head.modules_to_save["default"].weight
        self.backbone: nn.Module = self.causal.base_model
        self._check_head()
        if self.weight.dtype.itemsize < 4:  # the master weights of mixed precision
            self.weight.data = self.weight.data.float()

    @property
    def lora(self) -> dict[str, nn.Parameter]:
        """x, the LoRA weights by name."""
        return {
            name.removeprefix("module."): each
            for name, each in self.backbone.named_parameters()
            if "lora_" in name
        }

    @property
    def layers(self) -> list[nn.Module]:
        """The backbone's blocks, in order: what ``fully_shard`` is applied to before the backbone.

        Raises
        ------
        OptionError
            A model that does not say which of its modules they are.
        """
        names = set(self.causal._no_split_modules or ())
        found = [each for each in self.backbone.modules() if type(each).__name__ in names]
        if not found:
            raise OptionError(
                f"{type(self.causal).__name__} does not name its blocks (_no_split_modules), so "
                "they cannot be sharded or compiled one by one"
            )
        return found

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return self.weight.device

    @property
    def vocabulary_size(self) -> int:
        """V, the tokens that the head scores."""
        return len(self.weight)

    @property
    def context(self) -> int | None:
        """The most tokens that a sequence may have, where the model says it."""
        return getattr(self.causal.config, "max_position_embeddings", None)

    def features(self, batch: TokenBatch) -> Tensor:
        """[N, H], the last hidden states that predict the responses' tokens."""
        # Without a mask, transformers lets a token attend to those before it up to position 0.
        where = (
            {"attention_mask": batch.mask}
            if batch.position_ids is None
            else {"position_ids": batch.position_ids}
        )
        device, precision = self.device.type, self.autocast
        with torch.autocast(device, dtype=precision) if precision else nullcontext():
            hidden = self.backbone(input_ids=batch.ids, use_cache=False, **where).last_hidden_state
        result: Tensor = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
        return result.to(precision) if precision else result

    @torch.no_grad()
    def check_packing(self) -> None:
        """Refuse a model in which packed sequences see one another.

        ``transformers`` keeps them apart by their positions since version 4.54, for the attention
        implementations ``sdpa`` and ``eager``, in its own models; here a packed row is compared
        with its sequences one by one.

        Raises
        ------
        OptionError
            The hidden states differ.
        """
        ids = [tuple(k % self.vocabulary_size for k in range(i, i + 6)) for i in (1, 7, 13)]
        sequences = [Tokens(each, 1) for each in ids]
        # Rows of two: some implementations of attention look at the positions of a single row only.
        packed = self.features(TokenBatch.of(sequences, row_length=12).to(self.device))
        apart = self.features(TokenBatch.of(sequences).to(self.device))
        difference = float((packed - apart).norm() / apart.norm())
        if not difference < _SEPARATION:
            raise OptionError(
                f"packed sequences see one another in {type(self.causal).__name__} (their hidden "
                f"states differ by {difference:.0%}): leave row_length out, or use transformers "
                "4.54 or later with the attention implementation sdpa or eager"
            )

    def compile_layers(self) -> None:
        """Compile each of the ``layers`` with ``torch.compile``, for batches of any shape.

        Call it before ``fully_shard`` and before training; the first steps then take minutes. Worth
        it on GPUs and long runs.
        """
        for layer in self.layers:
            layer.compile()

    @contextmanager
    def as_reference(self) -> Iterator[Tensor]:
        """The model before it was adapted, for a while; gives its head."""
        with self.adapted.disable_adapter(), torch.no_grad():
            yield self._head.original_module.weight

    def save_pretrained(self, folder: str | Path) -> None:
        """Write LoRA weights and head where ``peft.PeftModel.from_pretrained`` finds both.

        Of several processes all call it, and the first one writes.
        """
        parts = ("lora_", "modules_to_save")
        weights = {
            name: whole(value)
            for name, value in self.adapted.state_dict().items()
            if any(part in name for part in parts)
        }
        self.adapted.save_pretrained(str(folder), state_dict=weights, is_main_process=rank() == 0)

    def load_pretrained(self, folder: str | Path) -> None:
        """Read LoRA weights and head back.

        Raises
        ------
        DatasetError
            Nothing is saved there, or it does not fit this model.
        """
        peft, safetensors = require("peft", "llm"), require("safetensors.torch", "llm")
        safetensors_errors = require("safetensors", "llm")
        self._check_configuration(Path(folder) / "adapter_config.json")
        try:
            saved = safetensors.load_file(Path(folder) / "adapter_model.safetensors")
            broken = [key for key, value in saved.items() if not bool(torch.isfinite(value).all())]
            found = None if broken else peft.set_peft_model_state_dict(self.adapted, saved)
        except (OSError, RuntimeError, KeyError, safetensors_errors.SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise DatasetError(f"{folder} holds no adapter of this model: {reason}") from error
        if found is None:
            raise DatasetError(f"{folder} holds NaN or infinite weights: {', '.join(broken[:3])}")
        if found.unexpected_keys:
            raise DatasetError(
                f"{folder} holds weights that this model does not have: "
                f"{', '.join(found.unexpected_keys[:3])}"
            )
        own = ("lora_", "modules_to_save")
        missing = [key for key in found.missing_keys if any(each in key for each in own)]
        if missing:
            raise DatasetError(
                f"{folder} lacks weights of this model: {', '.join(missing[:3])}. Make the model "
                "with the rank and targets that the adapter was trained with"
            )

    def _check_configuration(self, file: Path) -> None:
        """Refuse an adapter that scales its weights otherwise."""
        config = self.adapted.peft_config["default"]
        try:
            saved = json.loads(file.read_text())
            saved.keys()
        except OSError as error:
            raise DatasetError(f"{file} cannot be read ({error}): it says how an adapter scales "
                               "its weights") from error  # fmt: skip
        except (ValueError, AttributeError) as error:
            raise DatasetError(f"{file} is damaged: {error}") from error
        for name in _SCALING:
            own = getattr(config, name)
            found = saved.get(name, own)
            if (found or None) != (own or None):
                raise DatasetError(f"{file} has {name}={found}, and this model {own}")

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuse models that scale, cap or project what the head gives."""
        ids = torch.arange(8, device=self.device)[None] % self.vocabulary_size
        hidden = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
        if not bool(torch.isfinite(hidden).all() and torch.isfinite(self.weight).all()):
            raise DatasetError("the model has NaN or infinite weights: its file may be damaged")
        own = hidden.float() @ self.weight.float().T
        theirs = self.causal(input_ids=ids, use_cache=False).logits.float()
        if not torch.allclose(own, theirs, rtol=_AGREEMENT, atol=_AGREEMENT * float(own.std())):
            raise OptionError(
                f"the logits of {type(self.causal).__name__} are not W h (they differ by up to "
                f"{float((own - theirs).abs().max()):.2g}): models that scale or cap their logits "
                "are not supported"
            )


def _switch_dropout_off(model: nn.Module) -> None:
    """In modules, and in what calls of torch.nn.functional.dropout read: theirs, or the config."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    config = getattr(model, "config", None)
    for owner in [*model.modules(), *([] if config is None else [config])]:
        for name, value in vars(owner).items():
            if isinstance(value, float) and name.endswith(_DROPOUT):
                setattr(owner, name, 0.0)


def check_items(model: TwoLevelModel, items: Sequence[Item]) -> None:
    """Refuse tokens that the model does not know, and sequences longer than its context.

    Raises
    ------
    DatasetError
        Naming the first record.
    """
    check_vocabulary(items, model.vocabulary_size)
    if model.context is not None:
        check_length(
            items, model.context, "the model's context is", "tokenize with a smaller max_length"
        )


def check_finite(values: Tensor, batch: TokenBatch, what: str) -> None:
    """Refuse log-probabilities that are no numbers, naming the row of the batch.

    Raises
    ------
    DatasetError
        Naming the first sequence concerned.
    """
    if not bool(torch.isfinite(values).all()):
        row = int((~torch.isfinite(values)).nonzero()[0, 0])
        response = torch.split(batch.targets, batch.lengths.tolist())[row]
        raise DatasetError(
            f"{what} of sequence {row} of a batch (its response begins with the tokens "
            f"{response[:8].tolist()}) is {float(values[row])}: the model gives NaN or "
            "infinite logits. Try another precision, or look at that record"
        )


def check_loaders(
    model: TwoLevelModel, preferences: Iterable[TokenBatch], instructions: Iterable[TokenBatch]
) -> None:
    """Refuse loaders in each other's place, and records that do not fit the model.

    Raises
    ------
    DatasetError
        As above; of records it names the first.
    """
    expected = {"preferences": (preferences, 2), "instructions": (instructions, 1)}
    for name, (loader, responses) in expected.items():
        if not isinstance(loader, TokenLoader):
            continue
        found = len(loader.items[0])
        if found != responses:
            raise DatasetError(
                f"{name}: the loader's records have {found} response(s) each, expected {responses}"
            )
        check_items(model, loader.items)
    loaders = (preferences, instructions)
    if any(isinstance(each, TokenLoader) and each.row_length is not None for each in loaders):
        model.check_packing()
