"""F and G of BiRQ, from one pass, with what tells whether the labels are alive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bilevel.distributed import world_size
from bilevel.errors import OptionError
from bilevel.problems.speech.codes import CodeStatistics
from bilevel.problems.speech.encoder import Padding
from bilevel.problems.speech.inputs import SpeechInputs
from bilevel.problems.speech.labels import Labels, draw_labels
from bilevel.problems.speech.masking import Mask, apply_mask, draw_mask
from bilevel.problems.speech.model import SpeechModel, evaluating
from bilevel.problems.speech.noise import KeyedNoise

METHODS = ("birq", "best-rq", "relabel")


class PretrainingLosses(nn.Module):
    r"""The two objectives of a batch: (F, G), means over its masked frames.

    .. math::
        F(\theta) = -\mathbb E \sum_v y^{(k)}_v(\theta; x) \log p_v(\theta; \tilde x), \qquad
        G(\theta) = -\mathbb E \log p_{y(x)}(\theta; \tilde x)

    with x the features, :math:`\tilde x` their masked version, y(x) the anchor labels and
    :math:`y^{(k)}` the enhanced ones (arXiv:2509.15430, section 2). In several processes the means
    are those of the global batch, once their gradients are averaged.

    Parameters
    ----------
    model
        The model to be trained.
    method
        ``"birq"``; ``"best-rq"``, where F is identically zero and costs nothing; ``"relabel"``: the
        labels of G are the enhanced ones of a finished, calibrated model, as HuBERT has them.
    teacher
        That model, for ``"relabel"``, with as many codes and codebooks.

    Attributes
    ----------
    statistics
        Of the labels since they were last read, see
        :class:`~bilevel.problems.speech.codes.CodeStatistics`.
    utterances
        Those of the last batch, where it knows them.
    """

    def __init__(
        self, model: SpeechModel, method: str = "birq", teacher: SpeechModel | None = None
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise OptionError(f"method={method!r}, expected one of {', '.join(METHODS)}")
        if (method == "relabel") != (teacher is not None):
            raise OptionError("method='relabel', and no other, needs a teacher= to label by")
        if teacher is not None:
            _ = teacher.enhanced_projection.fixed_map  # refuse one that was not calibrated
            for name in ("codes", "codebooks"):
                given, own = (getattr(each.options.labels, name) for each in (teacher, model))
                if given != own:
                    raise OptionError(
                        f"the teacher has {name}={given}, the model that it labels for {own}: give "
                        "both the same"
                    )
        self.model = model
        self.method = method
        self._teacher = (teacher,)  # a tuple: its weights are not this module's
        labels = model.options.labels
        self.attached = method == "birq" and labels.target_gradient != "detached"
        if self.attached and model.options.encoder.dropout > 0:
            raise OptionError(
                "both views pass the encoder as one batch where F is differentiated through its "
                f"labels, and dropout={model.options.encoder.dropout} would act on the unmasked "
                "view: set dropout=0 or target_gradient='detached'"
            )
        self.statistics = CodeStatistics(labels.codes)
        self.utterances: Sequence[Any] = ()

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        model, options = self.model, self.model.options
        with torch.no_grad():
            inputs = model.inputs(batch)
            self.utterances = inputs.utterances
            self.statistics.frames += int(inputs.lengths.sum())
            noise = KeyedNoise(inputs.keys, inputs.features.device)
            mask = draw_mask(options.mask, inputs.lengths, noise)
            masked = apply_mask(inputs.features, mask, options.mask, noise)
            anchor = self._anchor(inputs, mask)
        padding = Padding(inputs.features, inputs.counts)
        clean: Tensor | None = None
        if self.method != "birq":
            hidden = model.encoder.embed(masked, padding)
            hidden = model.encoder.run(hidden, padding)
        else:
            hidden, clean = self._two_views(masked, inputs, padding)
            hidden = model.encoder.run(hidden, padding, options.labels.layer)
        log_p = model.log_probabilities(mask.take(hidden))
        scale = self._scale(sum(mask.counts) * options.labels.codebooks, log_p.device)
        g = scale * Labels(anchor, anchor).cross_entropy(log_p[:, 0])
        if clean is None:
            self.statistics.add(anchor)
            return 0.0 * g, g
        enhanced = self._enhanced(clean, inputs, mask, noise)
        self.statistics.add(anchor, enhanced)
        return scale * enhanced.cross_entropy(log_p[:, -1]), g

    def _two_views(
        self, masked: Tensor, inputs: SpeechInputs, padding: Padding
    ) -> tuple[Tensor, Tensor]:
        """Layer k's states of the masked and the unmasked features.

        Without a gradient through the labels the unmasked view costs a forward pass of k layers;
        with one, both views are one batch.
        """
        encoder, layer = self.model.encoder, self.model.options.labels.layer
        if not self.attached:
            with torch.no_grad(), evaluating(encoder):
                clean = encoder.run(encoder.embed(inputs.features, padding), padding, 0, layer)
            return encoder.run(encoder.embed(masked, padding), padding, 0, layer), clean
        views = torch.cat([masked, inputs.features])
        counts = None if inputs.counts is None else inputs.counts.repeat(2)
        both = Padding(views, counts)
        hidden = encoder.run(encoder.embed(views, both), both, 0, layer)
        if hidden.requires_grad:
            hidden.register_hook(self._weigh_paths)  # type: ignore[no-untyped-call]
        first, second = hidden.chunk(2)
        return first, second

    def _weigh_paths(self, gradient: Tensor) -> Tensor | None:
        """Compare the two paths' gradients at layer k, and bound the labels' if asked to."""
        rest, target = gradient.chunk(2)
        ratio = target.float().norm() / rest.float().norm().clamp_min(1e-30)
        self.statistics.gradient_ratio.add(ratio)
        labels = self.model.options.labels
        if labels.target_gradient != "capped":
            return None
        factor = (labels.gradient_cap / ratio.clamp_min(1e-30)).clamp_max(1.0)
        return torch.cat([rest, target * factor.to(target.dtype)])

    def _anchor(self, inputs: SpeechInputs, mask: Mask) -> Tensor:
        """Labels [N, codebooks] of G."""
        (teacher,) = self._teacher
        if teacher is not None:
            place = teacher.codebook.codes.device
            if place != inputs.features.device:
                raise OptionError(
                    f"the teacher is on {place}, what it is to label on {inputs.features.device}: "
                    "move it there"
                )
            projection = teacher.enhanced_projection
            with torch.no_grad():
                hidden = teacher.hidden(inputs, teacher.options.labels.layer)
                vectors = projection(mask.take(hidden), projection.fixed_map)
                return teacher.codebook.nearest(vectors)
        model = self.model
        return model.codebook.nearest(mask.take(model.anchor_vectors(inputs.features)))

    def _enhanced(
        self, clean: Tensor, inputs: SpeechInputs, mask: Mask, noise: KeyedNoise
    ) -> Labels:
        """Labels of F."""
        model, labels = self.model, self.model.options.labels
        projection = model.enhanced_projection
        valid = inputs.valid
        vectors = projection(mask.take(clean), projection.batch_map(clean, valid))
        logits = labels.logit_scale * model.codebook.cosines(vectors)
        gumbel = None
        if labels.noise > 0:
            gumbel = noise.gumbel(mask.counts, labels.codebooks * labels.codes)
        return draw_labels(logits, gumbel, labels)

    @staticmethod
    def _scale(count: int, device: torch.device) -> Tensor | float:
        """What turns this process's sum into its part of the global mean."""
        if world_size() == 1:
            return 1.0 / count
        total = torch.tensor(float(count), device=device)
        dist.all_reduce(total)
        return world_size() / total
