"""F and G: what they are, and which way their gradients go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from signals import inputs, model, rows_of

from bilevel.errors import NotApplicableError, OptionError
from bilevel.problems.speech import MaskOptions, PretrainingLosses, SpeechInputs
from bilevel.problems.speech.masking import apply_mask, draw_mask
from bilevel.problems.speech.noise import KeyedNoise


def losses(method="birq", seed=0, **labels):
    return PretrainingLosses(model(seed, **labels), method)


def gradients(module, value):
    module.zero_grad()
    value.backward(retain_graph=True)
    return {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in module.model.named_parameters()
    }


# The mask


def test_masks_have_the_expected_share_whole_spans_and_at_least_one():
    options = MaskOptions(probability=0.04, span=10)
    noise = KeyedNoise(range(400), torch.device("cpu"))
    lengths = np.full(400, 300)
    mask = draw_mask(options, lengths, noise)
    share = len(mask.rows) / (400 * 300)
    assert share == pytest.approx(1 - (1 - 0.04) ** 10, abs=0.015)
    short = draw_mask(MaskOptions(probability=1e-9, span=3), np.array([40, 5, 1]), noise_of(3))
    assert [min(count, 3) for count in short.counts] == short.counts
    assert min(short.counts) >= 1


def noise_of(rows, first=0):
    return KeyedNoise(range(first, first + rows), torch.device("cpu"))


def test_masks_stay_inside_their_utterances_and_do_not_depend_on_company():
    options = MaskOptions(probability=0.2, span=4)
    lengths = np.array([50, 20, 35])
    mask = draw_mask(options, lengths, noise_of(3))
    assert (mask.frames.numpy() < lengths[mask.rows.numpy()]).all()
    alone = draw_mask(options, lengths[1:2], noise_of(1, first=1))
    assert torch.equal(mask.frames[mask.rows == 1], alone.frames)
    assert mask.counts == torch.bincount(mask.rows, minlength=3).tolist()


def test_masked_frames_are_noise_and_the_others_are_left_alone():
    batch = inputs(rows=2, frames=400)
    mask = draw_mask(MaskOptions(), batch.lengths, noise_of(2))
    masked = apply_mask(batch.features, mask, MaskOptions(noise=0.1), noise_of(2))
    hit = torch.zeros(2, 100, dtype=torch.bool)
    hit[mask.rows, mask.frames] = True
    hit = hit.repeat_interleave(4, dim=1)
    assert torch.equal(masked[~hit], batch.features[~hit])
    assert float(masked[hit].std()) == pytest.approx(0.1, rel=0.05)


# Values


def test_g_is_the_loss_of_best_rq():
    network = losses()
    batch = inputs(rows=4, counts=[96, 60, 96, 80])
    _, g = network(batch)
    # By hand: mask, encode the masked view, compare with the nearest codes of the features.
    mask = draw_mask(network.model.options.mask, batch.lengths, KeyedNoise(batch.keys, g.device))
    masked = apply_mask(
        batch.features, mask, network.model.options.mask, KeyedNoise(batch.keys, g.device)
    )
    hidden = network.model.encoder(masked, batch.counts)[0][mask.rows, mask.frames]
    codes = network.model.anchor_codes(batch)[0][mask.rows, mask.frames, 0]
    expected = torch.nn.functional.cross_entropy(network.model.prediction(hidden), codes)
    torch.testing.assert_close(g, expected)
    f_alone, g_alone = losses("best-rq")(batch)
    torch.testing.assert_close(g_alone, expected)
    assert float(f_alone.detach()) == 0.0


def test_losses_of_parts_average_to_the_losses_of_the_whole():
    network = losses(normalisation="layernorm")  # statistics of a batch are of that batch
    batch = inputs(rows=4, counts=[96, 60, 96, 80])
    whole = torch.stack(network(batch))
    parts, weights = [], []
    for rows in ([0, 1], [2, 3]):
        part = rows_of(batch, rows)
        noise = KeyedNoise(part.keys, whole.device)
        mask = draw_mask(network.model.options.mask, part.lengths, noise)
        parts.append(torch.stack(network(part)))
        weights.append(len(mask.rows))
    mean = sum(w * p for w, p in zip(weights, parts, strict=True)) / sum(weights)
    torch.testing.assert_close(mean, whole)


def test_further_padding_does_not_change_the_losses():
    network = losses()
    batch = inputs(rows=4, counts=[96, 60, 96, 80])
    longer = torch.nn.functional.pad(batch.features, (0, 0, 0, 160), value=9.0)
    padded = SpeechInputs.of(longer, batch.counts.numpy(), batch.keys)
    torch.testing.assert_close(torch.stack(network(padded)), torch.stack(network(batch)))


def test_a_relabelling_teacher_gives_the_labels_of_g():
    teacher = model(seed=9, noise=0.0)
    batch = inputs()
    with pytest.raises(NotApplicableError, match="calibrate"):
        PretrainingLosses(model(), "relabel", teacher)
    teacher.calibrate([batch])
    network = PretrainingLosses(model(), "relabel", teacher)
    f, g = network(batch)
    mask = draw_mask(network.model.options.mask, batch.lengths, KeyedNoise(batch.keys, g.device))
    masked = apply_mask(
        batch.features, mask, network.model.options.mask, KeyedNoise(batch.keys, g.device)
    )
    hidden = network.model.encoder(masked)[0][mask.rows, mask.frames]
    codes = teacher.enhanced_codes(batch)[0][mask.rows, mask.frames, 0]
    torch.testing.assert_close(
        g, torch.nn.functional.cross_entropy(network.model.prediction(hidden), codes)
    )
    assert float(f.detach()) == 0.0
    assert {name for name, _ in network.named_parameters()} == {
        f"model.{name}" for name, _ in network.model.named_parameters()
    }


# Gradients


def split_by_layer(found, layer):
    """Gradients up to layer k, and beyond it."""
    below, above = {}, {}
    for name, gradient in found.items():
        parts = name.split(".")
        deep = parts[0] == "prediction" or (parts[1] == "layers" and int(parts[2]) >= layer)
        (above if deep else below)[name] = gradient
    return below, above


def test_detaching_the_labels_changes_no_gradient_beyond_layer_k():
    batch = inputs()
    full, detached = losses(target_gradient="full"), losses()
    with_path = split_by_layer(gradients(full, full(batch)[0]), 2)
    without = split_by_layer(gradients(detached, detached(batch)[0]), 2)
    for name, gradient in without[1].items():
        torch.testing.assert_close(with_path[1][name], gradient)
    assert any(
        not torch.allclose(with_path[0][name], gradient) for name, gradient in without[0].items()
    )


def test_a_detached_f_is_differentiated_through_the_masked_view_only():
    """Its gradient is that of the cross-entropy with the drawn codes held fixed."""
    network = losses(noise=0.0)
    batch = inputs()
    found = gradients(network, network(batch)[0])
    mask = draw_mask(network.model.options.mask, batch.lengths, noise_of(4))
    masked = apply_mask(batch.features, mask, network.model.options.mask, noise_of(4))
    network.model.calibrate([batch])
    codes = network.model.enhanced_codes(batch)[0][mask.rows, mask.frames, 0]
    hidden = network.model.encoder(masked)[0][mask.rows, mask.frames]
    value = torch.nn.functional.cross_entropy(network.model.prediction(hidden), codes)
    for name, gradient in gradients(network, value).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def test_g_has_no_gradient_through_the_labels():
    batch = inputs()
    full, plain = losses(target_gradient="full"), losses("best-rq")
    ours, theirs = gradients(full, full(batch)[1]), gradients(plain, plain(batch)[1])
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4)


def paths_of(network):
    """Norms at layer k of the gradient through the masked view and of that through the labels."""
    found = []
    layer = network.model.encoder.layers[network.model.options.labels.layer - 1]
    handle = layer.register_full_backward_hook(lambda *each: found.append(each[2][0]))
    f, g = network(inputs())
    (f / 24 + g).backward()
    handle.remove()
    rest, target = found[0].chunk(2)
    return float(rest.norm()), float(target.norm())


def test_the_gradient_through_the_labels_is_capped_at_its_share_of_the_rest():
    full = losses(target_gradient="full")
    rest, target = paths_of(full)
    ratio = target / rest
    assert ratio > 0.01
    assert full.statistics.read()["gradient_ratio"] == pytest.approx(ratio, rel=1e-4)
    for cap, kept in ((0.5 * ratio, 0.5 * ratio), (2 * ratio, ratio)):
        capped = losses(target_gradient="capped", gradient_cap=cap)
        same, bounded = paths_of(capped)
        assert same == pytest.approx(rest, rel=1e-4)
        assert bounded == pytest.approx(kept * rest, rel=1e-4)
        assert capped.statistics.read()["gradient_ratio"] == pytest.approx(ratio, rel=1e-4)


def test_a_cap_leads_from_detached_labels_to_the_full_gradient():
    batch = inputs()
    found = {}
    for cap in (1e-6, 1e6):
        network = losses(target_gradient="capped", gradient_cap=cap)
        f, g = network(batch)
        found[cap] = gradients(network, f / 24 + g)
    full = losses(target_gradient="full")
    f, g = full(batch)
    for name, gradient in gradients(full, f / 24 + g).items():
        torch.testing.assert_close(found[1e6][name], gradient)
    detached = losses()
    f, g = detached(batch)
    for name, gradient in gradients(detached, f / 24 + g).items():
        torch.testing.assert_close(found[1e-6][name], gradient, atol=1e-5, rtol=1e-3)


def test_two_heads_predict_one_label_each():
    network = losses(prediction_heads=2)
    f, g = network(inputs())
    weight = network.model.prediction.weight
    (of_f,) = torch.autograd.grad(f, weight, retain_graph=True)
    (of_g,) = torch.autograd.grad(g, weight)
    assert torch.count_nonzero(of_f[:64]) == 0
    assert torch.count_nonzero(of_g[64:]) == 0
    assert torch.count_nonzero(of_f) > 0


def test_several_codebooks_have_their_own_codes_and_predictions():
    network = losses(codebooks=2)
    batch = inputs()
    codes = network.model.anchor_codes(batch)[0]
    assert codes.shape == (4, 24, 2)
    assert not torch.equal(codes[..., 0], codes[..., 1])
    f, g = network(batch)
    assert float(f.detach()) > 0
    assert float(g.detach()) == pytest.approx(np.log(64), rel=0.2)  # untrained: about uniform


def test_bf16_changes_losses_little_and_labels_not_at_all():
    batch = inputs()
    values = []
    for enabled in (False, True):
        network = losses(noise=0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(float(network(batch)[1].detach()))
        perplexity = network.statistics.read()["anchor_perplexity"]
        values.append(perplexity)
    assert values[0] == pytest.approx(values[2], rel=0.02)
    assert values[1] == values[3]


def relabelled(**labels):
    teacher = model(**labels)
    teacher.calibrate([inputs()])
    return PretrainingLosses(model(), "relabel", teacher)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses("wav2vec"), "method='wav2vec', expected one of birq, best-rq, relabel"),
        (lambda: losses("relabel"), "needs a teacher"),
        (lambda: PretrainingLosses(model(), "birq", model()), "and no other"),
        (lambda: relabelled(codes=32), "the teacher has codes=32, the model that it labels for 64"),
        (lambda: relabelled(codebooks=2), "the teacher has codebooks=2"),
    ],
)
def test_what_makes_no_objective_is_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()
