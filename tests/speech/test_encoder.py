"""The Conformer encoder and its front end."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from signals import features, options

from bilevel.errors import OptionError
from bilevel.problems.speech import PRESETS, EncoderOptions, SpeechEncoder
from bilevel.problems.speech.conformer import ConformerBlock, rotate, rotation_of
from bilevel.problems.speech.encoder import Padding


def encoder(**changes):
    torch.manual_seed(0)
    return SpeechEncoder(dataclasses.replace(options().encoder, **changes)).double()


@pytest.mark.parametrize("window", [None, 5])
def test_padding_and_company_do_not_change_an_utterance(window):
    network = encoder(window=window)
    x = features(3, 101).double()
    counts = torch.tensor([101, 61, 38])
    together, lengths = network(x, counts)
    assert lengths.tolist() == [25, 15, 9]
    for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        alone, _ = network(x[i : i + 1, :count])
        torch.testing.assert_close(together[i, :length], alone[0, :length])


def test_what_lies_beyond_an_utterance_does_not_matter():
    network = encoder()
    x = features(2, 80).double()
    counts = torch.tensor([80, 44])
    other = x.clone()
    other[1, 44:] = 1e3
    before, after = network(x, counts)[0], network(other, counts)[0]
    torch.testing.assert_close(before[1, :11], after[1, :11])


def test_a_frame_sees_the_four_feature_frames_it_stands_for_and_is_centred_on_them():
    network = encoder(layers=1)
    x = features(1, 64).double().requires_grad_()
    network.embed(x, Padding(x, None))[0, 8, 0].backward()
    seen = x.grad[0].abs().sum(dim=1).nonzero().flatten().tolist()
    assert seen == list(range(4 * 8 - 3, 4 * 8 + 7))  # three to each side of frames 32..35


def test_a_window_bounds_what_a_frame_attends_to():
    network = encoder(layers=1, window=4, kernel=1)
    hidden = torch.randn(1, 20, 32, dtype=torch.float64, requires_grad=True)
    padding = Padding(torch.zeros(1, 80, 80), None)
    network.run(hidden, padding)[0, 10, 0].backward()
    seen = hidden.grad[0].abs().sum(dim=1).nonzero().flatten().tolist()
    assert seen == [8, 9, 10, 11, 12]


def test_layers_run_in_parts_are_the_layers_run_at_once():
    network = encoder()
    x = features(2, 40).double()
    padding = Padding(x, None)
    hidden = network.run(network.embed(x, padding), padding, 0, 2)
    torch.testing.assert_close(hidden, network(x, layers=2)[0])
    torch.testing.assert_close(network.run(hidden, padding, 2), network(x)[0])


@pytest.mark.parametrize("layer", [-1, 4])
def test_layers_that_are_not_there_are_refused(layer):
    with pytest.raises(OptionError, match=f"layer {layer} of an encoder with 3 layers"):
        encoder()(features(1, 40).double(), layers=layer)


@torch.no_grad()
def test_compiled_layers_are_compiled_once_for_all_lengths(monkeypatch):
    compiled = []

    def backend(graph, examples):
        compiled.append(graph)
        return graph.forward

    def compile_with(self, **options):
        torch.nn.Module.compile(self, backend=backend, **options)

    monkeypatch.setattr(ConformerBlock, "compile", compile_with)
    network = encoder()
    plain = [network(features(1, frames).double())[0] for frames in range(40, 120, 8)]
    network.compile_layers()
    for frames, expected in zip(range(40, 120, 8), plain, strict=True):
        torch.testing.assert_close(network(features(1, frames).double())[0], expected)
    assert len(compiled) == 2  # one of the first length, one of any


def test_rotary_scores_depend_on_distances_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    rotation = rotation_of(32, 8, torch.device("cpu"))
    rotation = tuple(each.double() for each in rotation)
    scores = rotate(q.expand(32, 8), rotation) @ rotate(k.expand(32, 8), rotation).T
    for distance in (0, 3, 11):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-6, rtol=0)
    assert scores[0].std() > 0.1


@pytest.mark.parametrize(("name", "millions"), [("c1", 137), ("c2", 155), ("c3", 275)])
def test_presets_have_the_published_sizes(name, millions):
    with torch.device("meta"):
        network = SpeechEncoder(PRESETS[name].encoder)
    size = sum(each.numel() for each in network.parameters()) / 1e6
    assert size == pytest.approx(millions, rel=0.04)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 30}, "rotary"),
        ({"kernel": 4}, "odd"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"dropout": "a lot"}, "dropout='a lot', expected a share"),
        ({"layers": 0}, "layers"),
    ],
)
def test_options_that_make_no_encoder_are_refused(changes, message):
    base = {"layers": 2, "width": 32, "attention_heads": 4}
    with pytest.raises(OptionError, match=message):
        EncoderOptions(**{**base, **changes})


def test_features_of_another_width_are_refused():
    with pytest.raises(OptionError, match=r"\[B, F, 80\]"):
        encoder()(torch.zeros(1, 16, 40, dtype=torch.float64))
