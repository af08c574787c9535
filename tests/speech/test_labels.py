"""Quantisers, and labels drawn from logits over their codes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from signals import inputs, model, options, rows_of

from bilevel.errors import NotApplicableError, OptionError
from bilevel.problems.speech import PRESETS, LabelOptions, SpeechModel
from bilevel.problems.speech.labels import draw_labels
from bilevel.problems.speech.noise import KeyedNoise
from bilevel.problems.speech.quantizers import Codebook, NormalisedProjection


def gumbel(count, size, key=0):
    return KeyedNoise([key], torch.device("cpu")).gumbel([count], size)


# Which code is drawn


def share_of_nearest(logits_of, frames=400):
    """P(drawn code = nearest code) of random 16-d unit vectors against 8192 codes."""
    published = dataclasses.replace(PRESETS["c2"].labels, seed=1)
    generator = torch.Generator().manual_seed(0)
    book = Codebook(published, generator)
    vectors = torch.nn.functional.normalize(
        torch.randn(frames, 1, published.dimension, generator=generator), dim=-1
    )
    logits = logits_of(book.cosines(vectors), published)
    drawn = draw_labels(logits, gumbel(frames, published.codes), published)
    return float((drawn.codes == drawn.nearest).float().mean())


def test_logits_without_a_scale_give_labels_of_noise():
    # Squared distances of unit vectors are 2 - 2 cos.
    assert share_of_nearest(lambda cosines, _: 2 * cosines - 2) < 0.01
    assert share_of_nearest(lambda cosines, _: cosines) < 0.01


def test_the_default_scale_mostly_draws_the_nearest_code():
    assert share_of_nearest(lambda cosines, labels: labels.logit_scale * cosines) >= 0.5


def test_codes_are_drawn_with_the_softmax_probabilities_whatever_the_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(40_000, 1, 3)
    noise = gumbel(40_000, 3)
    drawn = []
    for temperature in (0.1, 0.5, 5.0):
        choice = options(temperature=temperature, target_gradient="full").labels
        drawn.append(draw_labels(logits, noise, choice).codes)
    shares = torch.bincount(drawn[0].flatten(), minlength=3) / 40_000
    torch.testing.assert_close(shares, torch.softmax(logits[0, 0], 0), atol=0.01, rtol=0)
    assert all(torch.equal(each, drawn[0]) for each in drawn)


def test_without_noise_the_nearest_code_is_taken():
    logits = torch.randn(50, 2, 8)
    drawn = draw_labels(logits, None, options(noise=0.0).labels)
    assert torch.equal(drawn.codes, logits.argmax(-1))
    assert torch.equal(drawn.codes, drawn.nearest)


# Gradients


def cross_entropy(logits, log_p, **labels):
    choice = options(**labels).labels
    noise = gumbel(len(logits), logits.shape[-1]).double()
    return draw_labels(logits, noise, choice).cross_entropy(log_p)


def test_soft_cross_entropy_has_the_derivative_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(3, 1, 5, dtype=torch.float64, requires_grad=True)
    log_p = torch.randn(3, 1, 5, dtype=torch.float64).log_softmax(-1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *each: cross_entropy(*each, selection="soft", target_gradient="full"),
        (logits, log_p),
    )


def test_a_hard_label_has_the_gradient_of_the_soft_one():
    torch.manual_seed(0)
    log_p = torch.randn(6, 1, 5, dtype=torch.float64).log_softmax(-1)
    gradients = []
    for selection in ("soft", "hard"):
        generator = torch.Generator().manual_seed(1)
        logits = torch.randn(6, 1, 5, dtype=torch.float64, generator=generator).requires_grad_()
        cross_entropy(logits, log_p, selection=selection, target_gradient="full").backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    # dF/dlogits = (1 / tau) y (h - <h, y>), h = -log p.
    soft = torch.softmax((logits + gumbel(6, 5).double().view(6, 1, 5)) / 0.5, -1).detach()
    h = -log_p
    closed = soft * (h - (h * soft).sum(-1, keepdim=True)) / 0.5
    torch.testing.assert_close(gradients[1], closed)


@pytest.mark.parametrize("selection", ["hard", "soft"])
def test_a_detached_label_passes_no_gradient_and_has_the_same_value(selection):
    torch.manual_seed(0)
    logits = torch.randn(6, 1, 5, dtype=torch.float64, requires_grad=True)
    log_p = torch.randn(6, 1, 5, dtype=torch.float64).log_softmax(-1).requires_grad_()
    full = cross_entropy(logits, log_p, selection=selection, target_gradient="full")
    detached = cross_entropy(logits, log_p, selection=selection)
    torch.testing.assert_close(full, detached)
    detached.backward()
    assert logits.grad is None


# Anchor labels


def anchor(network, batch):
    codes, valid = network.anchor_codes(batch)
    return [row[keep] for row, keep in zip(codes, valid, strict=True)]


def test_anchor_labels_do_not_depend_on_padding_or_company():
    network = model()
    batch = inputs(rows=4, frames=97, counts=[97, 80, 43, 60])
    together = anchor(network, batch)
    assert [len(each) for each in together] == [24, 20, 10, 15]
    for i in range(4):
        assert torch.equal(anchor(network, rows_of(batch, [i]))[0], together[i])
    assert torch.equal(anchor(network, rows_of(batch, [3, 1]))[0], together[3])


def test_anchor_labels_do_not_depend_on_autocast_or_training():
    network = model()
    batch = inputs()
    before = network.anchor_codes(batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.anchor_codes(batch)[0], before)
    for parameter in network.parameters():
        parameter.data.add_(1.0)
    assert torch.equal(network.anchor_codes(batch)[0], before)


def test_anchor_labels_survive_saving_and_depend_on_the_labels_seed_alone(tmp_path):
    network = model(seed=0)
    batch = inputs()
    network.save_pretrained(tmp_path)
    loaded = SpeechModel.from_pretrained(tmp_path)
    codes = network.anchor_codes(batch)[0]
    assert torch.equal(loaded.anchor_codes(batch)[0], codes)
    assert torch.equal(model(seed=5).anchor_codes(batch)[0], codes)


def test_anchor_labels_are_the_nearest_codes_of_the_projected_frames():
    network = model()
    batch = inputs(rows=1, frames=32)
    codes = network.anchor_codes(batch)[0][0, :, 0]
    stacked = batch.features.reshape(8, 320).double()
    vectors = stacked @ network.anchor_projection.matrix.double().T
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    book = network.codebook.codes[0].double()
    distances = torch.cdist(vectors, book)
    assert torch.equal(codes, distances.argmin(dim=1))


# Normalised projections


def statistics_of(normalisation, ridge=0.3):
    choice = options(normalisation=normalisation, ridge=ridge, dimension=4).labels
    projection = NormalisedProjection(32, choice, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 500, 32, generator=generator) * torch.linspace(0.1, 3, 32) + 2.0
    matrix, offset = projection.batch_map(hidden, None)
    z = torch.nn.functional.layer_norm(hidden, (32,)).flatten(0, 1)
    p = torch.einsum("nd,bkd->nbk", z, matrix)[:, 0] + offset[0]
    return p.double(), projection, hidden


def test_whitened_vectors_are_centred_and_uncorrelated():
    p, _, _ = statistics_of("whiten")
    torch.testing.assert_close(p.mean(0), torch.zeros(4).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(p.T.cov(correction=0), torch.eye(4).double(), atol=0.05, rtol=0)


def test_shrunk_whitening_uses_the_covariance_plus_a_share_of_its_mean_variance():
    p, projection, hidden = statistics_of("shrink", ridge=0.3)
    z = torch.nn.functional.layer_norm(hidden, (32,)).flatten(0, 1).double()
    raw = z @ projection.matrix[0].double().T
    covariance = raw.T.cov(correction=0)
    shrunk = covariance + 0.3 * covariance.diagonal().mean() * torch.eye(4)
    expected = torch.linalg.solve_triangular(
        torch.linalg.cholesky(shrunk), (raw - raw.mean(0)).T, upper=False
    ).T
    torch.testing.assert_close(p, expected, atol=1e-4, rtol=1e-4)


def test_standardised_features_have_unit_variance_before_the_projection():
    p, projection, hidden = statistics_of("standardise")
    z = torch.nn.functional.layer_norm(hidden, (32,)).flatten(0, 1).double()
    scaled = (z - z.mean(0)) / z.std(0, correction=0)
    torch.testing.assert_close(p, scaled @ projection.matrix[0].double().T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("normalisation", ["shrink", "standardise"])
def test_statistics_do_not_depend_on_autocast(normalisation):
    _, projection, hidden = statistics_of(normalisation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = projection.batch_map(hidden, None)
    for one, other in zip(found, projection.batch_map(hidden, None), strict=True):
        torch.testing.assert_close(one, other)


def test_statistics_leave_padding_out():
    _, projection, hidden = statistics_of("shrink")
    valid = torch.ones(2, 500, dtype=torch.bool)
    valid[1, 300:] = False
    spoilt = hidden.clone()
    spoilt[1, 300:] = 100.0 * torch.randn(200, 32)
    for one, other in zip(
        projection.batch_map(hidden, valid), projection.batch_map(spoilt, valid), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_enhanced_labels_outside_of_training_need_calibration_and_then_stand_alone():
    network = model()
    batch = inputs(rows=4, counts=[96, 60, 96, 80])
    with pytest.raises(NotApplicableError, match="calibrate"):
        network.enhanced_codes(batch)
    network.calibrate([batch, inputs(rows=4, seed=3)])
    codes, valid = network.enhanced_codes(batch)
    alone, _ = network.enhanced_codes(rows_of(batch, [1]))
    assert torch.equal(codes[1][valid[1]], alone[0])


def test_calibration_by_parts_is_calibration_at_once():
    network, batch = model(), inputs(rows=4)
    network.calibrate([batch])
    together = [each.clone() for each in network.enhanced_projection.fixed_map]
    network.calibrate([rows_of(batch, [0]), rows_of(batch, [1, 2, 3])])
    for one, other in zip(together, network.enhanced_projection.fixed_map, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "argmax"}, "selection='argmax', expected one of hard, soft"),
        ({"normalisation": "batch"}, "normalisation='batch'"),
        ({"target_gradient": "on"}, "target_gradient='on'"),
        ({"prediction_heads": 3}, "prediction_heads=3"),
        ({"logit_scale": -1.0}, "logit_scale"),
        ({"noise": -0.5}, "noise=-0.5"),
        ({"noise": "1"}, "noise='1', expected a finite number"),
        ({"codes": 1}, "codes=1, expected an integer >= 2"),
        ({"seed": -1}, "seed"),
    ],
)
def test_label_options_out_of_range_are_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        LabelOptions(**{"layer": 2, **changes})


def test_labels_of_a_layer_that_is_not_there_are_refused():
    with pytest.raises(OptionError, match="layer 9 of an encoder with 3 layers"):
        options(layer=9)


def test_keyed_noise_belongs_to_the_utterance():
    device = torch.device("cpu")
    together = KeyedNoise([3, 7, 9], device)
    alone = KeyedNoise([7], device)
    np.testing.assert_array_equal(together.uniform(5)[1], alone.uniform(5)[0])
    for draw in ("normal", "gumbel"):
        rows = getattr(together, draw)([2, 4, 1], 6)
        assert torch.equal(rows[2:6], getattr(alone, draw)([4], 6))
    assert not torch.equal(together.normal([1, 1, 1], 4)[0], together.normal([1, 1, 1], 4)[1])
