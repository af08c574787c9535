"""The losses: against plain logits, transformers and trl; and their gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from tiny import PREFERENCES, base, instructions, preferences, tokenizer, two_levels

from bilevel.errors import OptionError
from bilevel.problems.llm import (
    TokenBatch,
    TokenLoader,
    dpo_loss,
    evaluate,
    finetuning_problem,
    reference_log_probabilities,
    sequence_log_probabilities,
    token_log_probabilities,
)


def drawn(tokens, size, vocabulary, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, size, generator=generator, dtype=dtype)
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@given(st.integers(1, 9), st.integers(1, 5), st.integers(2, 8), st.integers(1, 10), st.integers(0))
def test_log_probabilities_in_chunks_are_those_of_all_logits(tokens, size, vocabulary, chunk, seed):
    hidden, weight, targets = drawn(tokens, size, vocabulary, seed % 2**32)
    weights = torch.linspace(-1.0, 2.0, tokens, dtype=torch.float64)
    found = token_log_probabilities(hidden, weight, targets, chunk)
    wanted = torch.log_softmax(hidden @ weight.T, -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for own, right in zip(
        torch.autograd.grad(found @ weights, (hidden, weight)),
        torch.autograd.grad(wanted @ weights, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(own, right, rtol=1e-10, atol=1e-12)


def test_one_level_gets_a_gradient_without_the_other():
    hidden, weight, targets = drawn(5, 3, 7, 0)
    token_log_probabilities(hidden, weight.detach(), targets, 2).sum().backward()
    token_log_probabilities(hidden.detach(), weight, targets, 2).sum().backward()
    both = drawn(5, 3, 7, 0)
    token_log_probabilities(*both, 2).sum().backward()
    torch.testing.assert_close(hidden.grad, both[0].grad)
    torch.testing.assert_close(weight.grad, both[1].grad)


def test_low_precision_stays_close():
    hidden, weight, targets = drawn(50, 16, 40, 3, torch.float32)
    exact = token_log_probabilities(hidden, weight, targets, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rough = token_log_probabilities(hidden, weight, targets, 16)
    assert rough.dtype == torch.float32
    assert 1e-4 < float((rough - exact).detach().abs().max()) < 0.3
    rough.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_the_supervised_loss_is_that_of_transformers():
    model = two_levels()
    batch = TokenBatch.of([item[0] for item in instructions()[:6]])
    labels = torch.full_like(batch.ids, -100)
    for row, item in enumerate(instructions()[:6]):
        tokens = item[0]
        labels[row, tokens.prompt_length : len(tokens.ids)] = torch.tensor(
            tokens.ids[tokens.prompt_length :]
        )
    theirs = model.causal(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
    problem = finetuning_problem(model, chunk=7)
    ours = problem.lower_value(problem.features_of(model.lora, batch), model.weight, batch)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)


def test_the_preference_loss_is_that_of_trl(tmp_path):
    trl = pytest.importorskip("trl")
    model = two_levels(dtype=torch.float32)
    model.save_pretrained(tmp_path / "adapter")
    policy = PeftModel.from_pretrained(base(dtype=torch.float32), tmp_path / "adapter")
    rows = [
        {"prompt": each.prompt[:-1], "chosen": f" {each.chosen}", "rejected": f" {each.rejected}"}
        for each in PREFERENCES[:8]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about trl's calls
        config = trl.DPOConfig(
            output_dir=str(tmp_path), beta=0.3, per_device_train_batch_size=8, max_length=64,
            report_to=[], use_cpu=True, bf16=False, disable_dropout=True,
            gradient_checkpointing=False,
        )  # fmt: skip
        trainer = trl.DPOTrainer(
            model=policy.merge_and_unload(),
            ref_model=base(dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = float(trainer.compute_loss(trainer.model, inputs).detach())
    items = preferences()[:8]
    reference = reference_log_probabilities(model, items)
    (batch,) = TokenLoader(items, 8, reference=reference)
    tokens = token_log_probabilities(model.features(batch), model.weight, batch.targets)
    ours = dpo_loss(sequence_log_probabilities(tokens, batch.lengths), batch.reference, beta=0.3)
    assert abs(theirs - 0.6931) > 1e-3
    assert float(ours.detach()) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_packing_changes_neither_losses_nor_gradients(family, attention):
    model = two_levels(family)
    model.causal.set_attn_implementation(attention)
    problem = finetuning_problem(model)
    reference = reference_log_probabilities(model, preferences()[:8])
    found = []
    for row_length in (None, 64):
        (preferred,) = TokenLoader(preferences()[:8], 8, reference=reference, row_length=row_length)
        (instructed,) = TokenLoader(instructions()[:8], 8, row_length=row_length)
        losses = (
            problem.upper_value(model.features(preferred), model.weight, preferred),
            problem.lower_value(model.features(instructed), model.weight, instructed),
        )
        leaves = [*model.lora.values(), model.weight]
        slopes = [slope for loss in losses for slope in torch.autograd.grad(loss, leaves)]
        found.append([*losses, *slopes])
        rows = len(preferred.ids)
    assert rows < 16
    assert all(float(slope.abs().max()) > 1e-4 for slope in found[0][2:])
    for packed, padded in zip(*reversed(found), strict=True):  # Llama's norm is in single precision
        torch.testing.assert_close(packed, padded, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_packed_sequence_does_not_depend_on_its_neighbours(family):
    model = two_levels(family)

    def logs(*sequences):
        batch = TokenBatch.of(sequences, row_length=128)
        assert len(batch.ids) == 1
        tokens = token_log_probabilities(model.features(batch), model.weight, batch.targets)
        return sequence_log_probabilities(tokens, batch.lengths).detach()

    first, second, third, fourth = (item[0] for item in preferences()[:40:10])
    assert len({first, second, third, fourth}) == 4
    alone = float(logs(first))
    for neighbours in ((second, third), (fourth, second), (third,)):
        assert float(logs(first, *neighbours)[0]) == pytest.approx(alone, abs=1e-6)
        assert float(logs(*neighbours, first)[-1]) == pytest.approx(alone, abs=1e-6)


def test_a_model_whose_packed_sequences_see_one_another_is_refused():
    for dtype in (torch.float64, torch.bfloat16):
        model = two_levels(dtype=dtype)
        model.check_packing()
        model.backbone.register_forward_pre_hook(
            lambda module, args, inputs: (
                args, {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
            ),
            with_kwargs=True,
        )  # fmt: skip
        with pytest.raises(OptionError, match="packed sequences see one another in Llama"):
            evaluate(
                model,
                TokenLoader(preferences()[:6], 6, row_length=64),
                TokenLoader(instructions()[:6], 6),
            )


def test_packing_is_looked_at_in_several_rows():
    """Where attention keeps sequences apart in a batch of one row alone."""
    model = two_levels()

    def leak(module, args, inputs):
        several = len(inputs["input_ids"]) > 1 and "position_ids" in inputs
        whole = {"attention_mask": torch.ones_like(inputs["input_ids"])} if several else {}
        return args, {**inputs, **whole}

    model.backbone.register_forward_pre_hook(leak, with_kwargs=True)
    with pytest.raises(OptionError, match="packed sequences see one another in Llama"):
        model.check_packing()


def test_accumulated_batches_of_unequal_lengths_give_the_gradient_of_one_batch():
    model = two_levels()
    problem = finetuning_problem(model)

    def slope(loader):
        batches = list(loader)[:4]
        losses = [problem.lower_value(model.features(b), model.weight, b) for b in batches]
        return torch.autograd.grad(torch.stack(losses).mean(), model.weight)[0]

    whole = slope([next(iter(TokenLoader(instructions(), 8, seed=0)))])
    split = TokenLoader(instructions(), 2, seed=0, accumulate=4)
    assert len({len(batch.targets) for batch in list(split)[:4]}) > 1
    torch.testing.assert_close(slope(split), whole, rtol=1e-6, atol=1e-9)
    apart = slope(TokenLoader(instructions(), 2, seed=0))
    assert float((apart - whole).norm() / whole.norm()) > 1e-3


def test_gradients_of_both_objectives_equal_finite_differences():
    model = two_levels("gpt_neox")  # Llama's norm is in single precision
    problem = finetuning_problem(model, chunk=16)
    upper = TokenLoader(preferences()[:4], 4)
    lower = TokenLoader(instructions()[:4], 4)
    (preferred,), (instructed,) = list(upper), list(lower)
    generator = torch.Generator().manual_seed(2)
    for value, batch in ((problem.upper_value, preferred), (problem.lower_value, instructed)):
        for leaf in (list(model.lora.values())[1], model.weight):

            def at(shift, value=value, batch=batch, leaf=leaf):
                with torch.no_grad():
                    leaf += shift
                    found = value(model.features(batch), model.weight, batch)
                    leaf -= shift
                return float(found)

            direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
            loss = value(model.features(batch), model.weight, batch)
            (slope,) = torch.autograd.grad(loss, leaf)
            difference = (at(1e-6 * direction) - at(-1e-6 * direction)) / 2e-6
            assert float((slope * direction).sum()) == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_evaluation_weighs_by_preferences_and_tokens():
    model = two_levels()
    pairs, items = preferences()[:7], instructions()[:7]
    whole = evaluate(model, TokenLoader(pairs, 7), TokenLoader(items, 7))
    parts = evaluate(model, TokenLoader(pairs, 3), TokenLoader(items, 2))
    assert parts.dpo_loss == pytest.approx(whole.dpo_loss, rel=1e-12)
    assert parts.sft_loss == pytest.approx(whole.sft_loss, rel=1e-12)
    assert parts.preference_accuracy == whole.preference_accuracy
    assert 0 < whole.preference_accuracy < 1
    assert whole.perplexity == pytest.approx(torch.tensor(whole.sft_loss).exp().item())


def test_at_the_reference_the_preference_loss_is_log_two():
    from bilevel.problems.llm import TwoLevelModel

    model = TwoLevelModel(base(), rank=4)
    scores = evaluate(model, TokenLoader(preferences()[:6], 4), TokenLoader(instructions()[:4], 4))
    assert scores.dpo_loss == pytest.approx(0.6931471805599453, abs=1e-12)
