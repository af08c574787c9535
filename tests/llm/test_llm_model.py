"""The two levels: where gradients go, one step by hand, and models that are saved and reloaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from tiny import base, instructions, preferences, tokenizer, two_levels
from torch import nn

from bilevel import PBGD, PBGDFree
from bilevel.callbacks import Checkpoint
from bilevel.errors import DatasetError, OptionError
from bilevel.problems.llm import (
    METHODS,
    FineTuningOptions,
    Scalarised,
    TokenBatch,
    TokenLoader,
    TwoLevelModel,
    dpo_loss,
    evaluate,
    finetune,
    finetuning_problem,
    reference_log_probabilities,
    sequence_log_probabilities,
)

SGD = {"upper_lr": 0.05, "lower_lr": 0.2}


def batches(model, seed=0):
    reference = reference_log_probabilities(model, preferences())
    return (
        TokenLoader(preferences(), 6, seed=seed, reference=reference),
        TokenLoader(instructions(), 6, seed=seed),
    )


def plain_logs(model, batch):
    """log π of the response tokens from the model's own logits."""
    logits = model.causal(input_ids=batch.ids, attention_mask=batch.mask).logits.flatten(0, 1)
    rows = torch.log_softmax(logits.to(model.weight.dtype), -1)[batch.positions]
    return rows.gather(-1, batch.targets[:, None])[:, 0]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_value_function_free_step_is_the_one_written_by_hand(family, steps):
    model, other = two_levels(family), two_levels(family)
    solver = PBGDFree(penalty=10.0, inner_steps=steps, **SGD)
    problem = finetuning_problem(model, chunk=32)
    preferred, instructed = (next(iter(loader)) for loader in batches(model))
    state = solver.init(problem, model.lora, model.weight)
    solver.step(problem, state, preferred, instructed)

    def losses():
        sums = sequence_log_probabilities(plain_logs(other, preferred), preferred.lengths)
        return dpo_loss(sums, preferred.reference), -plain_logs(other, instructed).mean()

    for _ in range(steps):
        f, g = losses()
        (slope,) = torch.autograd.grad(f / 10.0 + g, [other.weight])
        with torch.no_grad():
            other.weight -= 0.2 * slope
    slopes = torch.autograd.grad(losses()[0], list(other.lora.values()))
    with torch.no_grad():
        for leaf, slope in zip(other.lora.values(), slopes, strict=True):
            leaf -= 0.05 * slope
    start = two_levels(family)
    for one, two, first in zip(
        [*model.lora.values(), model.weight],
        [*other.lora.values(), other.weight],
        [*start.lora.values(), start.weight],
        strict=True,
    ):
        assert float((one - first).detach().abs().max()) > 1e-5
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-8)


def test_everything_but_the_two_levels_stays_as_it_was():
    model = two_levels()
    levels = {id(each) for each in (*model.lora.values(), model.weight)}
    others = {n: p for n, p in model.causal.named_parameters() if id(p) not in levels}
    before = {name: each.detach().clone() for name, each in others.items()}
    finetune(model, PBGD(penalty=5.0, **SGD), *batches(model), 3, progress=False)
    assert len(others) > 10
    for name, each in others.items():
        assert torch.equal(each, before[name])
        assert each.grad is None


def test_the_backbone_runs_once_a_batch_and_only_preferences_go_back_through_it():
    model = two_levels()
    calls = []
    model.backbone.register_forward_hook(
        lambda module, inputs, output: calls.append(output.last_hidden_state.requires_grad)
    )
    problem = finetuning_problem(model)
    loaders = [next(iter(each)) for each in batches(model)]
    for solver, wanted in (
        (PBGDFree(penalty=10.0, **SGD), [True, False]),
        (PBGDFree(penalty=10.0, inner_steps=4, **SGD), [True, False]),
        (PBGD(penalty=10.0, inner_steps=3, **SGD), [True, True]),
        (Scalarised(upper_share=0.0, **SGD), [False]),
        (Scalarised(upper_share=1.0, **SGD), [True]),
    ):
        state = solver.init(problem, model.lora, model.weight)
        solver.step(problem, state, *loaders)
        calls.clear()
        solver.step(problem, state, *loaders)
        assert calls == wanted, solver


@pytest.mark.parametrize("method", METHODS)
def test_each_method_lowers_what_it_minimises(method):
    model = TwoLevelModel(base(dtype=torch.float32), rank=4)
    reference = reference_log_probabilities(model, preferences())

    def scores():
        return evaluate(
            model,
            TokenLoader(preferences(), 16, reference=reference),
            TokenLoader(instructions(), 16),
        )

    first = scores()
    options = FineTuningOptions(lr=1e-2, head_lr=1e-2)
    for solver in options.solvers(method):
        finetune(model, solver, *batches(model), 15, progress=False)
    last = scores()
    assert last.sft_loss < first.sft_loss - 0.3 or method == "dpo"
    assert last.dpo_loss < first.dpo_loss - 0.02 or method == "sft"
    assert last.preference_accuracy > 0.6 or method == "sft"


@pytest.mark.parametrize(
    ("share", "named", "other"), [(1.0, "upper", "lower"), (0.0, "lower", "upper")]
)
def test_the_history_of_one_objective_is_that_of_its_steps(share, named, other):
    model = two_levels()
    preferred, instructed = ([next(iter(each))] for each in batches(model))
    values = []
    problem = finetuning_problem(model)

    def note(record, state):
        values.append(record[named])

    solver = Scalarised(upper_share=share, **SGD)
    (batch,), value = (
        (preferred, problem.upper_value) if share else (instructed, problem.lower_value)
    )
    with torch.no_grad():
        before = float(value(model.features(batch), model.weight, batch))
    solution = finetune(
        model, solver, preferred, instructed, 4, callbacks=[note], log_every=1, progress=False
    )
    assert values[0] == pytest.approx(before, rel=1e-9)
    assert values[0] > values[1] > values[2] > values[3]  # on one batch, again and again
    assert solution.history[other].notna().tolist() == [True, False, False, False]


def test_micro_batches_alternate_as_one_batch_does():
    """All micro-batches move the head, then all of them the backbone."""
    model, other = two_levels(), two_levels()
    preferred, instructed = batches(model)
    preferred, instructed = list(preferred)[:2], list(instructed)[:2]
    problem, two = finetuning_problem(model), finetuning_problem(other)
    solver = PBGDFree(penalty=10.0, accumulate=2, **SGD)
    solver.step(problem, solver.init(problem, model.lora, model.weight), preferred, instructed)
    f = [lambda b=b: two.upper_value(other.features(b), other.weight, b) for b in preferred]
    g = [lambda b=b: two.lower_value(other.features(b), other.weight, b) for b in instructed]
    loss = sum(each() for each in f) / 20.0 + sum(each() for each in g) / 2.0
    with torch.no_grad():
        other.weight -= 0.2 * torch.autograd.grad(loss, [other.weight])[0]
    slopes = torch.autograd.grad(sum(each() for each in f) / 2.0, list(other.lora.values()))
    with torch.no_grad():
        for leaf, slope in zip(other.lora.values(), slopes, strict=True):
            leaf -= 0.05 * slope
    for one, right in zip(model.lora.values(), other.lora.values(), strict=True):
        torch.testing.assert_close(one, right, rtol=1e-6, atol=1e-10)


def test_a_model_in_low_precision_trains_with_its_levels_in_single():
    model = two_levels(dtype=torch.bfloat16, autocast=torch.bfloat16)
    assert {each.dtype for each in (*model.lora.values(), model.weight)} == {torch.float32}
    assert model.backbone.embed_tokens.weight.dtype == torch.bfloat16
    (solver,) = FineTuningOptions(lr=1e-2, head_lr=1e-2).solvers("pbgd")
    before = model.weight.detach().clone()
    solution = finetune(model, solver, *batches(model), 10, log_every=1, progress=False)
    assert solution.history["lower"].iloc[-1] < solution.history["lower"].iloc[0] - 0.1
    assert not torch.equal(model.weight, before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler says of itself
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(("family", "checkpointing"), [("llama", False), ("gpt_neox", True)])
def test_compiled_layers_give_the_same_losses_and_gradients(family, checkpointing):
    torch.compiler.reset()
    model, other = (two_levels(family, torch.float32) for _ in range(2))
    reference = reference_log_probabilities(model, preferences()[:8])
    if checkpointing:
        model.causal.gradient_checkpointing_enable({"use_reentrant": False})
        model.causal.train()
    model.compile_layers()
    batch = {"reference": reference, "row_length": 64}
    ((preferred,), (instructed,)) = (
        TokenLoader(preferences()[:8], 8, **batch), TokenLoader(instructions()[:8], 8)
    )  # fmt: skip
    found = []
    for each in (model, other):
        problem = finetuning_problem(each)
        upper = problem.upper_value(each.features(preferred), each.weight, preferred)
        slopes = torch.autograd.grad(upper, [*each.lora.values(), each.weight])
        with torch.no_grad():
            lower = problem.lower_value(each.features(instructed), each.weight, instructed)
        found.append([upper, lower, *slopes])
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 2
    assert not counters["graph_break"]
    torch.compiler.reset()


# Saved models -----------------------------------------------------------------------------------

RELOAD = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
ids = torch.tensor(json.loads(sys.argv[3]))
with torch.no_grad():
    torch.save(model(input_ids=ids).logits, sys.argv[4])
"""


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_adapter_and_head_reload_in_a_fresh_process(tmp_path, tied):
    start = base(dtype=torch.float32)
    if tied:
        start.config.tie_word_embeddings = True
        start.tie_weights()
        assert start.get_output_embeddings().weight is start.get_input_embeddings().weight
    start.save_pretrained(tmp_path / "base")
    embeddings = start.get_input_embeddings().weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of tied weights
        model = TwoLevelModel(start, rank=4)
        finetune(
            model, *FineTuningOptions(lr=1e-2, head_lr=1e-2).solvers("pbgd-free"),
            *batches(model), 4, progress=False,
        )  # fmt: skip
        model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(start.get_input_embeddings().weight, embeddings)
    assert not torch.equal(model.weight, embeddings)
    ids = TokenBatch.of([item[0] for item in instructions()[:2]]).ids
    with torch.no_grad():
        own = model.causal(input_ids=ids).logits
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RELOAD, tmp_path / "base", tmp_path / "adapter",
         json.dumps(ids.tolist()), tmp_path / "logits.pt"],
        check=True, capture_output=True,
    )  # fmt: skip
    again = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(again, own, rtol=1e-5, atol=1e-5)
    with torch.no_grad(), model.adapted.disable_adapter():
        assert float((model.causal(input_ids=ids).logits - own).abs().max()) > 1e-2


# What is refused --------------------------------------------------------------------------------


def test_models_without_a_plain_head_are_refused():
    class Scaled(type(base())):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits / 3.0
            return output

    model = base(dtype=torch.float32)
    model.__class__ = Scaled
    with pytest.raises(OptionError, match="are not W h"):
        TwoLevelModel(model)
    model = base(dtype=torch.float32)
    model.set_output_embeddings(nn.Linear(16, len(tokenizer()), bias=True))
    with pytest.raises(OptionError, match="without bias"):
        TwoLevelModel(model)


def test_dropout_that_is_no_module_is_switched_off():
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=len(tokenizer()), hidden_size=16, word_embed_proj_dim=16, ffn_dim=32,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, dropout=0.5,
        attention_dropout=0.5, layerdrop=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    model = TwoLevelModel(OPTForCausalLM(config))
    model.causal.train()
    (batch,) = TokenLoader(instructions()[:4], 4)
    assert torch.equal(model.features(batch), model.features(batch))


def test_loaders_accumulate_as_many_batches_as_the_solver():
    model = two_levels()
    (solver,) = FineTuningOptions(accumulate=2).solvers("pbgd-free")
    with pytest.raises(OptionError, match="accumulate=1 and the solver 2"):
        finetune(model, solver, *batches(model), 2)


def test_targets_that_do_not_exist_are_refused():
    with pytest.raises(OptionError, match="name the modules"):
        TwoLevelModel(base(), targets=["nowhere"])
    assert len(TwoLevelModel(base(), targets=["up_proj"]).lora) == 4


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"clip_norm": -1.0}, {"inner_steps": 0}, {"penalty": float("nan")}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        FineTuningOptions(**options)


def test_unknown_methods_are_refused():
    with pytest.raises(OptionError, match="expected one of pbgd-free"):
        FineTuningOptions().solvers("magic")


def test_loaders_in_each_other_s_place_are_refused():
    model, (solver,) = two_levels(), FineTuningOptions().solvers("pbgd-free")
    loaders = TokenLoader(instructions(), 4, seed=0), TokenLoader(preferences(), 4, seed=0)
    with pytest.raises(DatasetError, match="preferences: the loader's records have 1 response"):
        finetune(model, solver, *loaders, 2)
    with pytest.raises(DatasetError, match="preferences: the loader's records have 1 response"):
        evaluate(model, *loaders)


def test_an_adapter_of_another_scale_or_with_broken_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    two_levels().save_pretrained(tmp_path)
    other = TwoLevelModel(base(), rank=4, alpha=640.0)
    with pytest.raises(DatasetError, match="lora_alpha"):
        other.load_pretrained(tmp_path)
    configuration = tmp_path / "adapter_config.json"
    saved = json.loads(configuration.read_text())
    for changed, words in (
        ({"use_rslora": True}, "use_rslora=True, and this model False"),
        ({"alpha_pattern": {"q_proj": 64}}, "alpha_pattern="),
        ({"use_dora": True}, "use_dora"),
    ):
        configuration.write_text(json.dumps({**saved, **changed}))
        with pytest.raises(DatasetError, match=words):
            two_levels().load_pretrained(tmp_path)
    configuration.write_text("[]")
    with pytest.raises(DatasetError, match="is damaged"):
        two_levels().load_pretrained(tmp_path)
    configuration.unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        two_levels().load_pretrained(tmp_path)
    configuration.write_text(json.dumps(saved))
    two_levels().load_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: value for name, value in weights.items() if "lora_A" not in name}, file)
    with pytest.raises(DatasetError, match="lacks weights of this model"):
        two_levels().load_pretrained(tmp_path)
    save_file({name: value * float("nan") for name, value in weights.items()}, file)
    with pytest.raises(DatasetError, match="NaN or infinite weights"):
        two_levels().load_pretrained(tmp_path)


def test_a_finished_run_resumed_returns_its_result(tmp_path):
    def go(**options):
        model, (solver,) = two_levels(), FineTuningOptions().solvers("pbgd-free")
        loaders = TokenLoader(preferences(), 4, seed=0), TokenLoader(instructions(), 4, seed=0)
        return finetune(model, solver, *loaders, 4, progress=False, **options)

    whole = go(callbacks=[Checkpoint(tmp_path / "x.pt", every=2)])
    again = go(resume=tmp_path / "x.pt")
    assert again.steps == 4
    assert again.upper_value == whole.upper_value
