"""Pretraining through PBGDFree: the program it solves, resuming, and the guard."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from signals import inputs, model, spoken_store

from bilevel import PBGDFree
from bilevel.callbacks import Callback, Checkpoint
from bilevel.errors import (
    CheckpointError,
    DatasetError,
    NonFiniteError,
    NotApplicableError,
    OptionError,
)
from bilevel.problems.speech import (
    CodeMonitor,
    CollapseError,
    CollapseWarning,
    PretrainingLosses,
    PretrainingOptions,
    SpeechModel,
    pretrain,
)
from bilevel.problems.speech.codes import perplexity
from bilevel.problems.speech.labels import Labels

BATCHES = [inputs(rows=6, frames=96, first=6 * i, seed=i) for i in range(4)]


def run(options, method="birq", seed=0, labels=None, **more):
    losses = PretrainingLosses(model(seed, **(labels or {})), method)
    return losses, pretrain(losses, BATCHES, options, progress=False, **more)


def test_a_step_is_the_optimisers_step_on_f_over_the_penalty_plus_g():
    options = PretrainingOptions(steps=1, lr=1e-3, warmup=0.0, clip_norm=1e9)
    trained, _ = run(options)
    byhand = first_step(options, BATCHES[:1])
    for one, other in zip(trained.parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def first_step(options, batches):
    """The losses' parameters after AdamW's step on the mean over the batches."""
    network = PretrainingLosses(model())
    for batch in batches:
        f, g = network(batch)
        ((f / options.penalty + g) / len(batches)).backward()
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
        lr=1e-3, betas=options.betas, weight_decay=options.weight_decay,
    )  # fmt: skip
    optimizer.step()
    return network


def test_a_penalty_beyond_all_bounds_is_best_rq():
    options = PretrainingOptions(steps=3, penalty=1e12)
    birq, _ = run(options)
    best_rq, solution = run(PretrainingOptions(steps=3), method="best-rq")
    for one, other in zip(birq.parameters(), best_rq.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert (solution.history["upper"] == 0.0).all()


def test_training_lowers_g_below_the_entropy_of_its_labels():
    _, solution = run(PretrainingOptions(steps=150, lr=5e-3), log_every=10)
    history = solution.history
    assert history["lower"].iloc[-3:].mean() < math.log(history["anchor_perplexity"].mean()) - 0.5


def test_the_history_counts_the_encoder_frames_seen():
    _, solution = run(PretrainingOptions(steps=4), log_every=1)
    assert solution.history["frames"].tolist() == [6 * 24 * step for step in (1, 2, 3, 4)]


def test_with_a_head_of_its_own_f_falls_too():
    options = PretrainingOptions(steps=100, lr=5e-3)
    solution = run(options, labels={"prediction_heads": 2}, log_every=10)[1]
    assert solution.history["upper"].iloc[-3:].mean() < solution.history["upper"].iloc[0] - 0.5


def test_the_anchor_phase_ignores_f_and_then_ends():
    solution = run(PretrainingOptions(steps=4, anchor_share=0.5), log_every=1)[1]
    penalties = solution.history["penalty"].tolist()
    assert min(penalties[:2]) > 1e9
    assert penalties[2:] == [24.0, 24.0]


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    factor = PretrainingOptions(steps=100, warmup=0.1, final=0.1).learning_rate_factor
    assert [factor(0), factor(4), factor(9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == pytest.approx(1.0)
    assert factor(55) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1)


def test_an_interrupted_run_ends_bit_for_bit_where_the_whole_one_ends(tmp_path):
    options = PretrainingOptions(steps=6, anchor_share=0.3)
    whole, straight = run(options, log_every=2)

    class Interrupt(Exception):
        pass

    def interrupt(record, state):
        if record["step"] >= 4:
            raise Interrupt

    checkpoint = tmp_path / "run.pt"
    with pytest.raises(Interrupt):
        run(options, log_every=1, callbacks=[Checkpoint(checkpoint, every=2), interrupt])
    resumed, rest = run(options, seed=3, log_every=2, resume=checkpoint)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert rest.history["lower"].iloc[-1] == straight.history["lower"].iloc[-1]


class Interrupt(Callback):
    """Ends the run after step 4, as Ctrl-C does."""

    def on_step(self, run):
        if run.state.step == 4:
            raise KeyboardInterrupt


def test_statistics_since_the_last_record_survive_an_interruption(tmp_path):
    options, path = PretrainingOptions(steps=6), tmp_path / "run.pt"
    _, straight = run(options, log_every=4)
    with pytest.raises(KeyboardInterrupt):
        run(options, log_every=4, callbacks=[Checkpoint(path, every=3), Interrupt()])
    _, rest = run(options, seed=3, log_every=4, resume=path)
    columns = ["step", "frames", "anchor_perplexity", "enhanced_perplexity", "agreement", "nearest"]
    assert rest.history[columns].to_dict("list") == straight.history[columns].to_dict("list")


def test_micro_batches_average_their_gradients():
    options = PretrainingOptions(steps=1, accumulate=2, warmup=0.0, clip_norm=1e9)
    trained, _ = run(options)
    byhand = first_step(options, BATCHES[:2])
    for one, other in zip(trained.parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert isinstance(options.solver(), PBGDFree)


@pytest.mark.parametrize(
    ("changes", "labels", "method", "message"),
    [
        ({"penalty": 2.0}, {}, "birq", "penalty=24.0, and this one has 2.0"),
        ({"anchor_share": 0.5}, {}, "birq", "anchor_share=0.0, and this one has 0.5"),
        ({}, {"layer": 1}, "birq", "layer=2, and this one has 1"),
        ({}, {}, "best-rq", "method='birq', and this one has 'best-rq'"),
    ],
)
def test_a_run_is_not_resumed_with_other_options(tmp_path, changes, labels, method, message):
    path, options = tmp_path / "run.pt", {"steps": 2}
    run(PretrainingOptions(**options), callbacks=[Checkpoint(path)])
    with pytest.raises(CheckpointError, match=message):
        run(PretrainingOptions(**options, **changes), method, labels=labels, resume=path)


def test_losses_that_are_not_finite_name_their_utterances():
    batch = spoken_store(8).batches(400)
    spoilt = [dataclasses.replace(each, features=each.features * math.nan) for each in batch]
    with pytest.raises(NonFiniteError, match=f"in a batch of {spoilt[0].utterances[0].id}"):
        pretrain(PretrainingLosses(model()), spoilt, PretrainingOptions(steps=2), progress=False)


# Statistics and the guard


def test_perplexity_is_the_number_of_codes_in_equal_use():
    codes = torch.arange(8).repeat(5)[:, None]
    assert float(perplexity(codes, 64)) == pytest.approx(8.0, rel=1e-5)
    assert float(perplexity(torch.zeros(9, 1, dtype=torch.long), 64)) == pytest.approx(1.0)
    both = torch.cat([codes, torch.zeros_like(codes)], dim=1)
    assert float(perplexity(both, 64)) == pytest.approx(4.5, rel=1e-5)


class Record(dict):
    """Stands for a run that logs."""

    def __init__(self, monitor):
        self.records = []
        self.monitor = monitor

    def log_all(self, steps, *labels, **more):
        for step in steps:
            record = self.log(step, *labels, **more)
        return record

    def log(self, step, anchor, enhanced, ratio=None):
        statistics = self.monitor.statistics
        statistics.add(anchor, Labels(enhanced, enhanced))
        if ratio is not None:
            statistics.gradient_ratio.add(torch.tensor(ratio))
        record = {"step": step}
        self.records.append(record)
        self.monitor.on_log(self, record)
        return record


def monitor(window=10, **options):
    return CodeMonitor(PretrainingLosses(model()).statistics, window=window, **options)


ALIVE = torch.arange(50)[:, None]
DEAD = torch.zeros(50, 1, dtype=torch.long)


def test_the_guard_warns_once_of_collapsed_labels_and_not_of_healthy_ones():
    run = Record(monitor())
    record = run.log_all(range(1, 21), ALIVE, ALIVE)
    assert record["enhanced_perplexity"] == pytest.approx(50, rel=1e-4)
    assert record["agreement"] == record["nearest"] == 1.0
    run.log_all(range(21, 28), ALIVE, DEAD)  # seven of ten steps leave the mean above
    with pytest.warns(CollapseWarning, match="collapsed by step") as caught:
        run.log_all(range(28, 60), ALIVE, DEAD)
    assert len(caught) == 1


def test_the_guard_can_stop_a_run():
    run = Record(monitor(stop=True))
    run.log_all(range(1, 10), ALIVE, DEAD)
    with pytest.raises(CollapseError, match=r"target_gradient='detached'"):
        run.log(10, ALIVE, DEAD)


def test_the_guard_judges_runs_shorter_than_its_window():
    run = Record(monitor(window=250, stop=True))
    run.log_all(range(1, 25), ALIVE, DEAD)  # an untrained encoder is given a while
    with pytest.raises(CollapseError, match="over 25 steps"):
        run.log(25, ALIVE, DEAD)


def test_the_guard_warns_where_the_gradient_is_all_the_labels():
    run = Record(monitor())
    with pytest.warns(CollapseWarning, match="times all the rest"):
        run.log_all(range(1, 12), ALIVE, ALIVE, ratio=30.0)


def test_labels_that_are_trained_to_be_predictable_collapse_and_the_guard_says_so():
    """The gradient through the labels, layer norm only, and F with as much weight as G."""
    dying = {"target_gradient": "full", "normalisation": "layernorm", "prediction_heads": 2}
    options = PretrainingOptions(steps=100, lr=5e-3, penalty=1.0)
    perplexities = {}
    for name, labels in (("dying", dying), ("default", {})):
        losses = PretrainingLosses(model(**labels))
        guard = CodeMonitor(losses.statistics, window=50)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = pretrain(
                losses, BATCHES, options, monitor=guard, log_every=5, progress=False
            ).history.iloc[-5:]
        perplexities[name] = (history["enhanced_perplexity"] / history["anchor_perplexity"]).mean()
        collapsed = [each for each in caught if "collapsed by step" in str(each.message)]
        assert len(collapsed) == (name == "dying")
    assert perplexities["dying"] < 0.15
    assert perplexities["default"] > 0.5


# Files


def test_a_saved_model_comes_back_whole(tmp_path):
    network = model(seed=2)
    network.calibrate(BATCHES[:1])
    network.save_pretrained(tmp_path / "model")
    loaded = SpeechModel.from_pretrained(tmp_path / "model")
    assert loaded.options == network.options
    assert set(loaded.state_dict()) == set(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not loaded.training
    assert torch.equal(loaded.enhanced_codes(BATCHES[1])[0], network.enhanced_codes(BATCHES[1])[0])


def test_what_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no model at"):
        SpeechModel.from_pretrained(tmp_path)
    model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="does not hold this model's weights"):
        SpeechModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(DatasetError, match="no weights at"):
        SpeechModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DatasetError, match="no configuration of a model"):
        SpeechModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"lr": -1.0}, "lr"),
        ({"warmup": 1.5}, "warmup=1.5"),
        ({"penalty": 0.0}, "penalty"),
        ({"anchor_share": -0.1}, "anchor_share"),
        ({"final": None}, "final=None, expected a share"),
        ({"weight_decay": math.inf}, "weight_decay=inf"),
    ],
)
def test_pretraining_options_out_of_range_are_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        PretrainingOptions(**{"steps": 5, **changes})


def test_an_unknown_preset_is_refused():
    with pytest.raises(OptionError, match="no preset 'huge'; choose one of tiny"):
        SpeechModel("huge")


def test_what_was_calibrated_before_further_training_holds_no_longer():
    network = model()
    network.calibrate(BATCHES[:1])
    network.enhanced_codes(BATCHES[1])
    pretrain(PretrainingLosses(network), BATCHES, PretrainingOptions(steps=2), progress=False)
    with pytest.raises(NotApplicableError, match=r"call model\.calibrate"):
        network.enhanced_codes(BATCHES[1])
    network.calibrate(BATCHES[:1])
    network.enhanced_codes(BATCHES[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("betas", (2.0, 0.9)), ("betas", 5), ("betas", (0.9,)), ("autocast", torch.float16)],
)
def test_options_of_the_optimiser_are_checked_at_once(name, value):
    with pytest.raises(OptionError, match="betas" if name == "betas" else "autocast"):
        PretrainingOptions(steps=2, **{name: value})


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"window": 2.5}, {"most_gradient_ratio": math.nan}]
)
def test_a_guard_that_could_not_fire_is_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        CodeMonitor(PretrainingLosses(model()).statistics, **options)
