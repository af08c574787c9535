"""Log-mel features against Kaldi's, and their normalisation."""

from __future__ import annotations

import kaldi_native_fbank
import numpy as np
import pytest
import torch

from bilevel.errors import OptionError
from bilevel.problems.speech.features import LogMel, normalise


def waveform(samples, seed=0):
    random = np.random.default_rng(seed)
    time = np.arange(samples) / 16_000
    tone = np.sin(2 * np.pi * 300 * time * (1 + time)) + 0.5 * np.sin(2 * np.pi * 2500 * time)
    return torch.tensor(0.3 * tone + 0.05 * random.normal(size=samples), dtype=torch.float32)


def kaldi(samples):
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80
    extractor = kaldi_native_fbank.OnlineFbank(options)
    extractor.accept_waveform(16_000, samples.tolist())
    extractor.input_finished()
    return np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])


@pytest.mark.parametrize("samples", [400, 4000, 16_123])
def test_features_are_kaldis(samples):
    x = waveform(samples)
    features, counts = LogMel()(x[None], torch.tensor([samples]))
    expected = kaldi(x)
    assert features.shape == (1, *expected.shape)
    assert counts.tolist() == [len(expected)]
    np.testing.assert_allclose(features[0], expected, atol=2e-3)


def test_features_of_a_batch_are_those_of_each_waveform():
    lengths = torch.tensor([8000, 5000, 399])
    batch = torch.zeros(3, 8000)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = waveform(int(length), int(length))
    features, counts = LogMel()(batch, lengths)
    assert counts.tolist() == [48, 29, 0]
    alone, _ = LogMel()(batch[1:2, :5000], lengths[1:2])
    torch.testing.assert_close(features[1, :29], alone[0], atol=1e-5, rtol=1e-5)


def test_autocast_changes_nothing():
    x, lengths = waveform(4000)[None], torch.tensor([4000])
    plain, _ = LogMel()(x, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, _ = LogMel()(x, lengths)
    assert torch.equal(plain, mixed)


def test_normalised_utterances_have_mean_0_and_deviation_1_whatever_the_padding():
    features = torch.randn(2, 60, 80, generator=torch.Generator().manual_seed(0)) * 3 + 5
    counts = torch.tensor([60, 35])
    spoilt = features.clone()
    spoilt[1, 35:] = torch.nan
    found = normalise(spoilt, counts)
    assert torch.equal(found, normalise(features, counts))
    assert torch.count_nonzero(found[1, 35:]) == 0
    for row, count in zip(found, counts, strict=True):
        torch.testing.assert_close(row[:count].mean(0), torch.zeros(80), atol=1e-5, rtol=0)
        torch.testing.assert_close(row[:count].std(0, correction=0), torch.ones(80))
    torch.testing.assert_close(found[1, :35], normalise(features[1:, :35], counts[1:])[0])


def test_a_constant_bin_stays_finite():
    assert torch.isfinite(normalise(torch.ones(1, 10, 80), torch.tensor([10]))).all()


def test_waveforms_that_have_no_frame_are_refused():
    with pytest.raises(OptionError, match="at least 400 samples"):
        LogMel()(torch.zeros(1, 399), torch.tensor([399]))
