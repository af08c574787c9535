"""Fine-tuning: step by step against a loop by hand, resumed, and on two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ctc_worker import AUGMENT, OPTIONS, VOCABULARY, batches, recogniser, run
from signals import model
from torch import nn

from bilevel.callbacks import Callback, Checkpoint
from bilevel.errors import CheckpointError, DatasetError, NonFiniteError, OptionError
from bilevel.problems.speech import (
    PretrainingLosses,
    PretrainingOptions,
    SpeechInputs,
    pretrain,
)
from bilevel.problems.speech.noise import KeyedNoise
from bilevel.problems.speech.recognition import FineTuningOptions, SpecAugment, Vocabulary, finetune
from bilevel.problems.speech.recognition.ctc import frames_needed

WORKER = Path(__file__).with_name("ctc_worker.py")


def by_hand(heard, options, steps):
    """The same run, written out."""
    heard.train()
    encoder, losses = list(heard.encoder.parameters()), []
    optimizer = torch.optim.AdamW(
        [{"params": heard.head.parameters()}, {"params": encoder}],
        weight_decay=options.weight_decay,
    )
    for step in range(steps):
        batch = batches()[step % 3]
        features = batch.features
        if options.augment is not None:
            noise = KeyedNoise(batch.keys, torch.device("cpu"))
            features = options.augment(features, batch.frame_counts, noise)
        log_probs, lengths = heard(features, batch.frame_counts)
        targets = [VOCABULARY.target(each) for each in batch.utterances]
        total = sum(
            nn.functional.ctc_loss(row[:length], torch.tensor(target), (length,), (len(target),),
                                   reduction="sum")
            for row, length, target in zip(log_probs, lengths, targets, strict=True)
        )  # fmt: skip
        loss = total / sum(map(len, targets))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(heard.parameters(), options.clip_norm)
        # Of 10 steps: the first rises, four stay, five fall to a twentieth.
        factor = 1.0 if step < 5 else 0.05 ** ((step - 4) / 5)
        optimizer.param_groups[0]["lr"] = options.head_lr * factor
        optimizer.param_groups[1]["lr"] = (
            options.encoder_lr * factor if step >= options.frozen_steps else 0.0
        )
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("frozen_steps", "augment"), [(0, None), (4, None), (0, AUGMENT)])
def test_every_step_is_that_of_a_loop_by_hand(frozen_steps, augment):
    options = replace(OPTIONS, frozen_steps=frozen_steps, augment=augment)
    heard, expected = recogniser(), recogniser()
    losses = by_hand(expected, options, 10)
    found = finetune(heard, batches(), steps=10, options=options, log_every=1, progress=False)
    assert found.history["lower"].tolist() == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0] - 0.1
    for one, other in zip(heard.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert heard.training
    assert found.history["lr"].iloc[2] == (0.0 if frozen_steps else options.encoder_lr)
    frames = [int(batch.lengths.sum()) for batch in batches()]
    assert found.history["frames"].iloc[3] == sum(frames) + frames[0]


@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_a_warm_up_rises_linearly(augment):
    options = FineTuningOptions(warmup=0.5, hold=0.5, augment=augment)
    factors = [options.learning_rate_factor(step, 8) for step in range(8)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


class Stop(Callback):
    """Ends a run as a failure would."""

    def on_step(self, run):
        if run.state.step == 7:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path):
    def trained(**more):
        heard = recogniser(dropout=0.2)
        found = finetune(
            heard, batches(), steps=9, options=OPTIONS, log_every=2, progress=False, **more
        )
        return list(heard.parameters()), found.history.drop(columns="seconds")

    parameters, history = trained()
    checkpoint = Checkpoint(tmp_path / "run.pt", every=4)
    with pytest.raises(KeyboardInterrupt):
        trained(callbacks=[checkpoint, Stop()])
    torch.manual_seed(99)
    resumed, rest = trained(resume=tmp_path / "run.pt")
    assert all(torch.equal(one, other) for one, other in zip(parameters, resumed, strict=True))
    assert rest.equals(history)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    path = tmp_path_factory.mktemp("begun") / "run.pt"
    finetune(recogniser(), batches(), steps=2, options=OPTIONS, progress=False,
             callbacks=[Checkpoint(path)])  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("change", "steps", "message"),
    [
        ({"warmup": 0.2}, 2, r"begun with warmup=0.1, and this one has 0.2"),
        ({"final": 0.1}, 2, "final=0.05"),
        ({"clip_norm": 2.0}, 2, "clip_norm=1.0"),
        ({"augment": None}, 2, "augment="),
        ({"autocast": torch.bfloat16}, 2, "autocast='None'"),
        ({}, 3, "steps=2"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(begun, change, steps, message):
    with pytest.raises(CheckpointError, match=message):
        finetune(recogniser(), batches(), steps=steps, options=replace(OPTIONS, **change),
                 progress=False, resume=begun)  # fmt: skip


def test_a_checkpoint_of_other_symbols_is_refused(begun):
    other = Vocabulary((*VOCABULARY.symbols[:-1], "zh"), "phones")
    with pytest.raises(CheckpointError, match="symbols="):
        finetune(recogniser(vocabulary=other), batches(), steps=2, options=OPTIONS, resume=begun)


def test_a_checkpoint_of_pretraining_is_refused(tmp_path):
    path = tmp_path / "pretraining.pt"
    pretrain(PretrainingLosses(model()), batches(), PretrainingOptions(steps=1), progress=False,
             callbacks=[Checkpoint(path)])  # fmt: skip
    with pytest.raises(CheckpointError, match=r"pretraining.pt: the saved"):
        finetune(recogniser(), batches(), steps=2, options=OPTIONS, resume=path)


def shortened(batch: SpeechInputs, frames: list[int]) -> SpeechInputs:
    """The same utterances, of which only the first feature frames are left."""
    return SpeechInputs.of(batch.features, np.array(frames), batch.keys, batch.utterances)


def test_targets_that_do_not_fit_their_frames_are_left_out():
    options = replace(OPTIONS, augment=None)
    whole = batches()[0]
    frames = [4 * length for length in whole.lengths]
    cut = shortened(whole, [*frames[:3], 8])
    heard, expected = recogniser(), recogniser()
    last = whole.utterances[3]
    needed = frames_needed(VOCABULARY.target(last))
    with pytest.warns(UserWarning, match=rf"1 utterances .*\({last.id} needs {needed}, has 2\)"):
        found = finetune(heard, [cut], steps=2, options=options, progress=False)
    alone = SpeechInputs.of(
        whole.features[:3], np.array(frames[:3]), whole.keys[:3], whole.utterances[:3]
    )
    without = finetune(expected, [alone], steps=2, options=options, progress=False)
    assert found.history["lower"].tolist() == pytest.approx(without.history["lower"].tolist())
    assert found.history["infeasible"].tolist() == [1, 1]


def test_a_run_that_can_learn_nothing_ends_with_its_first_epoch():
    cut = [shortened(batch, [8, 8, 8, 8]) for batch in batches()]
    met = []
    with pytest.raises(DatasetError, match=r"12 utterances .*, all of them: nothing was learned"):
        finetune(recogniser(), cut, steps=50, options=OPTIONS, log_every=1, progress=False,
                 callbacks=[lambda record, state: met.append(state.step)])  # fmt: skip
    assert met == [1, 2, 3]


def test_features_that_are_not_finite_leave_the_last_good_weights():
    heard, expected = recogniser(), recogniser()
    good = batches()[0]
    bad = replace(good, features=good.features * torch.nan)
    options = replace(OPTIONS, augment=None, hold=0.9)  # so the first step is the same of any run
    finetune(expected, [good], steps=1, options=options, progress=False)
    heard.eval()
    with pytest.raises(
        NonFiniteError, match=rf"in step 1, .*\(in a batch of {good.utterances[0].id}, "
    ):
        finetune(heard, [good, bad], steps=2, options=options, progress=False)
    assert not heard.training
    for one, other in zip(heard.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_part_that_needs_no_gradient_stays():
    heard = recogniser()
    heard.encoder.front.requires_grad_(False)
    before = {name: each.clone() for name, each in heard.named_parameters()}
    finetune(heard, batches(), steps=3, options=OPTIONS, progress=False)
    moved = {name for name, each in heard.named_parameters() if not torch.equal(each, before[name])}
    assert moved
    assert not any(name.startswith("encoder.front.") for name in moved)


def test_two_processes_train_as_one_does_on_the_same_global_batch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(WORKER), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    parameters, losses = run()
    for rank in (0, 1):
        found, history = torch.load(tmp_path / f"rank{rank}")
        assert history == pytest.approx(losses, abs=1e-5)
        for one, other in zip(parameters, found, strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=0)


class TestSpecAugment:
    features = torch.ones(3, 60, 80)
    counts = torch.tensor([60, 40, 20])

    def blank(self, options: SpecAugment, seed: int) -> torch.Tensor:
        noise = KeyedNoise([seed, seed + 1, seed + 2], torch.device("cpu"))
        return options(self.features, self.counts, noise) == 0

    def test_bands_reach_their_greatest_width_and_lie_inside(self):
        time = SpecAugment(time_bands=1, time_width=10, time_share=0.2, mel_bands=0)
        found = torch.stack([self.blank(time, 3 * seed) for seed in range(300)])[..., 0]
        widths = found.sum(2).amax(0)
        assert widths.tolist() == [10, 8, 4]  # a fifth, at most 10
        assert [row.any(0).nonzero().max() for row in found.unbind(1)] == [59, 39, 19]
        edges = (found[..., 1:] != found[..., :-1]).sum(2)
        assert edges.max() <= 2  # one band each
        mel = SpecAugment(time_bands=0, mel_bands=1, mel_width=7)
        found = torch.stack([self.blank(mel, 3 * seed) for seed in range(300)])[:, :, 0]
        assert found.sum(2).unique().tolist() == list(range(8))

    def test_no_band_is_wider_than_its_share_also_where_that_is_no_whole_number(self):
        noise = KeyedNoise(list(range(2000)), torch.device("cpu"))
        options = SpecAugment(time_bands=1, time_width=40, time_share=0.1, mel_bands=0)
        blank = options(torch.ones(2000, 43, 80), torch.full((2000,), 43), noise)[..., 0] == 0
        widths, counts = blank.sum(1).unique(return_counts=True)
        assert widths.tolist() == [0, 1, 2, 3, 4]  # 4.3 frames at most
        assert counts.min() > 320

    def test_an_utterance_has_the_same_bands_in_any_batch(self):
        whole = self.blank(AUGMENT, 0)
        alone = AUGMENT(
            self.features[1:2, :40], self.counts[1:2], KeyedNoise([1], torch.device("cpu"))
        )
        assert torch.equal(alone[0] == 0, whole[1, :40])


@pytest.mark.parametrize(
    ("option", "value"),
    [("head_lr", 0.0), ("clip_norm", -1.0), ("warmup", 0.7), ("autocast", torch.float16)],
)
def test_options(option, value):
    with pytest.raises(OptionError, match=option):
        FineTuningOptions(**{option: value})
