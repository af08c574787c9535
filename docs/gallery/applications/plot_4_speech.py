r"""
Speech without labels
=====================

A speech encoder :math:`\theta` hears a masked utterance :math:`\tilde x` and predicts a label of
each masked frame. Where do labels come from that nobody wrote? *Anchor labels* :math:`y(x)` are the
features themselves, randomly projected and quantised (BEST-RQ). *Enhanced labels*
:math:`y^{(k)}(\theta; x)` quantise what the encoder's own first k layers make of the unmasked
utterance; they may say more about what is spoken, and they move with the encoder. BiRQ
(`arXiv:2509.15430 <https://arxiv.org/abs/2509.15430>`_) makes of both a bilevel problem without an
upper variable: among the encoders that predict the anchor labels best, the one that predicts the
enhanced ones best,

.. math::
    \min_\theta \; F(\theta) = -\mathbb E \log p_{y^{(k)}(\theta; x)}(\theta; \tilde x)
    \quad \text{s.t.} \quad
    \theta \in \argmin_{\theta'} \; G(\theta') = -\mathbb E \log p_{y(x)}(\theta'; \tilde x).

The penalised problem :math:`\min_\theta F + \gamma\,(G - \min G)` needs no second response, since
:math:`\min G` is a constant: one gradient step on :math:`F / \gamma + G` is a step of
:class:`~bilevel.PBGDFree`, unchanged. (By default the labels of F are drawn and then held, not
differentiated: what is followed is then not F's whole gradient, see below.)
"""

# %%
# A corpus
# --------
# Two minutes of speech by espeak-ng, of many voices that read the documentation of Python; those of
# the test set are heard nowhere else. Phones and their times come for free. (All of it is the
# extra ``speech``.)
import dataclasses

import matplotlib.pyplot as plt
import pandas as pd
import torch

from bilevel import PBGDFree
from bilevel.problems.speech import (
    PRESETS,
    PretrainingLosses,
    PretrainingOptions,
    SpeechModel,
    pretrain,
    pretraining_problem,
)
from bilevel.problems.speech.data import espeak_corpus
from bilevel.problems.speech.protocol import Protocol, vocabulary_of
from bilevel.problems.speech.recognition import (
    BeamSearch,
    FineTuningOptions,
    estimate_ngrams,
)
from bilevel.problems.speech.sources import StoredSpeech

corpus = espeak_corpus(
    train_minutes=2, labelled_minutes=1, test_utterances=30, progress=False
)
speech = StoredSpeech.read(corpus)
utterance = corpus.test[0]
print(
    f"{len(corpus.train)} utterances to pretrain on, {len(corpus.labelled)} with labels"
)
print(f"{utterance.speaker}: {utterance.text}")
print(" ".join(phone.symbol for phone in utterance.phones))

# %%
# The problem
# -----------
# ``PretrainingLosses`` gives (F, G) of a batch from one pass; y is the network's parameters, x is
# empty. :func:`~bilevel.problems.speech.pretraining_problem` and
# :func:`~bilevel.problems.speech.pretrain` are these lines with AdamW, a learning-rate schedule and
# a guard.
torch.manual_seed(0)
model = SpeechModel("tiny")
losses = PretrainingLosses(model)
problem = pretraining_problem(
    losses
)  # BilevelProblem(objectives=lambda x, y, batch: losses(batch))
solver = PBGDFree(penalty=24.0, lower_lr=1e-2)
state = solver.init(problem, (), dict(losses.named_parameters()))
batch = next(iter(speech.pretraining(seed=0)))
state = solver.step(problem, state, lower_batch=batch)
print({name: float(value) for name, value in state.record.items()})

# %%
# Two things that decide whether it works
# ---------------------------------------
# *The scale of the logits.* The label of a frame is drawn from a Gumbel-softmax over V codes. The
# cosines of unit vectors to random codes are below one, and the largest of V Gumbel variables is
# about :math:`\ln V`: without a scale s on the cosines nearly every label is the noise's choice.
# (V = 8192 codes, vectors of 16 dimensions.)
from bilevel.problems.speech.labels import draw_labels
from bilevel.problems.speech.noise import KeyedNoise
from bilevel.problems.speech.quantizers import Codebook

published = PRESETS["c2"].labels
generator = torch.Generator().manual_seed(0)
book = Codebook(published, generator)
vectors = torch.nn.functional.normalize(
    torch.randn(300, 1, 16, generator=generator), dim=-1
)
noise = KeyedNoise([0], torch.device("cpu")).gumbel([300], 8192)
shares = {}
for scale in (1, 10, 20, 40, 100):
    labels = draw_labels(scale * book.cosines(vectors), noise, published)
    shares[scale] = float((labels.codes == labels.nearest).float().mean())
pd.Series(shares, name="share of labels that are the nearest code").rename_axis(
    "s"
).to_frame()

# %%
# *The gradient through the labels.* F is also small where all enhanced labels are alike, and
# nothing in G forbids it. The paper's Algorithm 1 differentiates F through its labels; here that is
# an option, and by default labels are drawn, not differentiated. A short run of each:
histories = {}
for name in ("detached", "full"):
    options = PRESETS["tiny"]
    labels = dataclasses.replace(
        options.labels, target_gradient=name, normalisation="standardise"
    )
    torch.manual_seed(0)
    model = SpeechModel(dataclasses.replace(options, labels=labels))
    solution = pretrain(
        PretrainingLosses(model),
        speech.pretraining(seed=0),
        PretrainingOptions(steps=120, lr=3e-3),
        log_every=4,
        progress=False,
    )
    histories[name] = solution.history
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained")
for name, history in histories.items():
    axes[0].plot(
        history["step"], history["enhanced_perplexity"], label=f"enhanced, {name}"
    )
    axes[1].plot(history["step"], history["lower"], label=f"G, {name}")
axes[0].plot(
    history["step"], history["anchor_perplexity"], color="0.6", label="anchor"
)
axes[0].set_title("codes in use (perplexity in a batch)", fontsize=10)
axes[0].set_ylim(bottom=0)
axes[1].set_title("cross-entropy of the anchor labels / nats", fontsize=10)
for ax in axes:
    ax.set_xlabel("step")
    ax.legend(frameon=False, fontsize=8)
plt.show()

# %%
# :class:`~bilevel.problems.speech.CodeMonitor` keeps these columns in every run's history, warns
# when the labels collapse, and can stop the run.
#
# The history's column ``upper`` is F. It may well rise, even above :math:`\ln V`, the loss of a
# guess: among encoders that predict the anchors equally well, F has the last word and no more, and
# its labels move with the encoder and are drawn anew at every step.
#
# From pretraining to error rates
# -------------------------------
# :class:`~bilevel.problems.speech.protocol.Protocol` is the rest: measure what layers and labels
# say about the phones of voices never heard, fine-tune on the labelled minutes by CTC, count phone
# errors. Phones are decoded greedily, and by a prefix beam search with a language model of phones,
# estimated from the labelled transcripts;
# :func:`~bilevel.problems.speech.recognition.read_arpa` reads one from a file. With budgets of
# seconds this only shows that it runs:
protocol = Protocol(
    pretraining=PretrainingOptions(steps=60, lr=3e-3),
    finetuning=FineTuningOptions(head_lr=3e-3, encoder_lr=1e-3),
    finetuning_steps=60,
)
found = protocol.pretrain(speech, PRESETS["tiny"], "birq", seed=0, progress=False)
measured = protocol.represent(speech, found.model)
vocabulary = vocabulary_of(speech)
transcripts = [vocabulary.words(each) for each in corpus.labelled]
search = BeamSearch(
    vocabulary=vocabulary, language_model=estimate_ngrams(transcripts)
)
heard = protocol.recognise(
    speech, found.model.encoder, seed=0, search=search, progress=False
)
layers = ["features", "front end", *range(1, len(measured.probes) - 1)]
probes = [round(each.value, 3) for each in measured.probes]
print(f"accuracy of a probe on {dict(zip(layers, probes, strict=True))}")
for name in ("anchor", "enhanced"):
    quality = dataclasses.asdict(getattr(measured, name))
    print(name, "labels:", {key: round(value, 3) for key, value in quality.items()})
print(f"phone error rate, greedy:   {heard.greedy.errors.rate()}")
print(f"phone error rate, searched: {heard.beam.errors.rate()}")

# %%
# Results: what a step costs
# --------------------------
# The target view passes the first k = 7 of K = 10 layers once more, without a gradient where labels
# are detached: counting the layers alone, 1.23 times a step of BEST-RQ, and 1.70 with the gradient.
# The front end, the softmax and the optimiser are shared, so that the whole may be below that.
# Measured on the same batches (``benchmarks/birq_cost.py``: preset ``c2``, 64 crops of 12 s,
# bfloat16, one NVIDIA H200, torch 2.11; the peak is 989 TFLOP/s):
#
# =========================  ========  =====  ========  =====  =========  =======
# \                          eager ms  ratio  compiled  ratio  frames/s   of peak
# =========================  ========  =====  ========  =====  =========  =======
# BEST-RQ                    113       1      84.9      1      226,000    38.7 %
# BiRQ, labels detached      140       1.24   103       1.22   186,000    36.1 %
# BiRQ, full gradient        184       1.63   139       1.64   138,000    40.1 %
# =========================  ========  =====  ========  =====  =========  =======
#
# The peak of memory is 1.11 times that of BEST-RQ with detached labels, and 1.65 times with the
# full gradient.
#
# Results: which labels stay alive
# --------------------------------
# 2,000 steps of the preset ``tiny`` on 30 minutes of this corpus, 512 codes
# (``benchmarks/birq_study.py --study collapse``). The ratio is the perplexity of the enhanced codes
# over the anchors', at the end and at its lowest; information is the share of the phones' entropy
# that the labels explain on voices not heard, for which anchors have .176; accuracy is that of the
# most frequent phone of each label. The first row is the mean of three quantiser seeds, the others
# are one seed each, and cells are empty where only the perplexity was kept. "Capped" bounds the
# norm of the gradient through the labels by that multiple of all the rest's (torch 2.13, CPU).
#
# =================================  ======  ======  ===========  ========
# labels                             end     least   information  accuracy
# =================================  ======  ======  ===========  ========
# detached, shrunk whitening         1.28    1.06    .176
# detached, whitened                 1.50    1.47    .164         .214
# detached, standardised             1.07    .56     .170         .218
# detached, layer norm               .79     .33     .182         .217
# detached, two heads                1.37    1.14    .172         .215
# full, shrunk whitening             .16     .024    .060         .106
# full, whitened                     .31     .096    .105         .148
# full, standardised                 .018    .016    .050         .103
# full, layer norm                   .009    .009    0            .085
# full, two heads                    .034    .021    .001         .087
# full, soft labels                  .017
# full, temperature 5                .025
# full, learning rate / 10           .078    .077    .162         .175
# full, penalty × 10                 .142    .141    .191         .207
# full, penalty × 100                1.27    1.08    .183         .227
# full, logit scale 10               .197    .197
# full, anchors alone first          .104    .104    .161         .177
# capped at .3 of the other          .408    .333    .198         .232
# capped at .03                      .877    .877    .194         .229
# capped at .003                     1.36    1.14    .172         .220
# =================================  ======  ======  ===========  ========
#
# With the gradient through the labels, they come down to few codes under every normalisation,
# least so when whitened. What keeps them alive is that gradient's share: bounded to a third of the
# rest or less, or outweighed by a penalty a hundred times as large. Capped at .3 and .03 the labels
# say the most about the phones, but of one seed each: detached ones need no such bound, and are the
# default.
#
# Results: what is learnt
# -----------------------
# 120 minutes without labels and 5 with, 200 sentences of voices and texts heard nowhere else to
# test on (7,099 phones); the preset ``tiny`` with 4 codebooks of 512 codes, 4,000 steps of 16 crops
# of 1.6 s, then 600 steps of CTC; three seeds of weights, quantisers and batches
# (``benchmarks/birq_study.py --study learning --codebooks 4 --steps 4000 --minutes 120
# --finetuning-steps 600 --finetuning 0.01 0.002 100``; torch 2.13, an AMD EPYC). Fine-tuning has
# rates of .01 for the output layer and .002 for the encoder, which rests for the first 100 steps;
# without pretraining .003 for both is better, and given too (``--finetuning 0.003 0.003 0 --arms
# scratch``). Phones are decoded greedily, and by a beam search of width 50 with trigrams of the
# labelled transcripts' phones. BEST-RQ at equal compute makes 4,800 steps.
#
# ==============================  ===========  ============  ===========  ==========  ===========
# \                               greedy       95 %          beam, LM     best probe  information
# ==============================  ===========  ============  ===========  ==========  ===========
# no pretraining, the same rates  .409 ± .003  .391 to .428  .379 ± .004  .325        .101
# no pretraining, its own rates   .394 ± .003  .374 to .413  .367 ± .002  .325        .101
# BEST-RQ                         .371 ± .006  .354 to .389  .340 ± .009  .393        .200
# BEST-RQ, equal compute          .368 ± .007  .351 to .386  .342 ± .007  .391        .202
# BiRQ                            .366 ± .004  .349 to .385  .338 ± .004  .393        .203
# relabelled by BEST-RQ           .366 ± .009  .349 to .382  .336 ± .005  .395        .203
# ==============================  ===========  ============  ===========  ==========  ===========
#
# ± is the standard deviation of the seeds, the interval a bootstrap over sentences of their mean.
# The best probe is the accuracy of a linear phone classifier on the best layer, which no more than
# reaches that on the features themselves (.389): what fine-tuning gains from pretraining does not
# show in single frames. Information is that of enhanced labels drawn from the finished encoder (the
# anchors': .167).
#
# Pretraining pays: BEST-RQ takes .023 of error off its absence (interval of the paired difference
# .015 to .030; with the language model .027, .019 to .034), BiRQ .028 (.021 to .034; .029, .022 to
# .035). Between the pretrained arms nothing is certain: BiRQ minus BEST-RQ is -.005 (-.011 to .001)
# at equal steps and -.002 (-.008 to .004) at equal compute (with the language model -.002, -.003),
# and relabelling is level with BiRQ. An earlier run of three seeds, before small changes of
# fine-tuning, had BiRQ .004 worse: so much is chance. Its codes stayed alive: the ratio of
# perplexities ended at 1.19 to 1.29, and never fell below .93. The published gain is that of models
# and corpora hundreds of times as large; no search was made for a setting of this size in which
# BiRQ wins.
#
# With a single codebook an encoder of this size learns the anchor labels of half an hour by heart:
# in one run of 10,000 steps (seed 0) G fell to 3.7 nats in place of 5.1, probes fell too, and
# fine-tuning ended where it ends without pretraining. Four codebooks, more speech, or both, avoid
# that.
#
# Results: with a language model
# ------------------------------
# The example's default run (``examples/birq_speech.py``, one seed: 20 minutes without labels and 5
# with, 700 steps, 150 sentences to test on) took seven minutes on two virtual cores of an AMD EPYC,
# and is too small for pretraining to pay: without it errors are fewest, though all intervals, over
# voices, overlap. A beam search of width 50 with trigrams of phones, estimated
# from the labelled transcripts alone, takes 2.5 to 3.9 points off each arm; its weight .5 and its
# bonus of 1 a phone are the usual ones, and near the best on other sentences of training voices.
#
# ===============  ======  ============  =========  ============
# \                greedy  95 %          beam, LM   95 %
# ===============  ======  ============  =========  ============
# no pretraining   .397    .360 to .434  .362       .329 to .400
# BEST-RQ          .418    .385 to .451  .388       .354 to .423
# BiRQ             .427    .396 to .459  .388       .356 to .423
# relabelled       .443    .413 to .475  .418       .390 to .449
# ===============  ======  ============  =========  ============
