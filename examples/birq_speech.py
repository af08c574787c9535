"""Pretrain a speech encoder without labels, fine-tune it on minutes of them, count its errors.

Four ways to begin, side by side:

  scratch   no pretraining
  best-rq   labels from the features alone: a frozen random projection, quantised (arXiv:2202.01855)
  birq      those, and labels from the encoder's own layer k, as a simple bilevel problem: among the
            encoders that predict the first best, the one that predicts the second best
            (arXiv:2509.15430)
  relabel   labels from layer k of a finished best-rq encoder, as HuBERT has them

By default the speech is espeak-ng's: many voices read sentences of Python's documentation, and
those of the test set are heard nowhere else. For your own, name folders or manifests: LibriSpeech
and AMI trees, YODAS shards, NeMo, SpeechBrain and Lhotse manifests, or any folder of audio.

Error rates are of greedy decoding, and of beam search with an n-gram language model over phones or
words: that of --lm, an ARPA file, or one estimated from the transcripts of the labelled speech.

As it stands this takes some ten minutes on two CPU cores, and 11 MB an arm below --out. relabel
without best-rq first trains the encoder that it labels by, which its time includes.

    python examples/birq_speech.py
    python examples/birq_speech.py --preset c2 --data train-960 --labelled train-clean-100 \\
        --test test-other --steps 400000 --batch-seconds 800 --lr 1e-4 --bf16 --compile
    torchrun --nproc-per-node=8 examples/birq_speech.py ... (the same)
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist
from output import write_configuration, write_csv, write_json
from runs import (
    make_folder,
    parse,
    read_result,
    require_least,
    require_same_run,
    start_processes,
)
from speech_arms import (
    FINETUNING,
    FREE,
    PRETRAINING,
    SEARCH,
    read_history,
    run_arm,
)

from bilevel.distributed import gather, rank
from bilevel.errors import BilevelError, OptionError
from bilevel.extras import require
from bilevel.problems.speech import PRESETS, PretrainingOptions, SpeechOptions
from bilevel.problems.speech.data import FORMATS, Utterance, espeak_corpus, read_corpus
from bilevel.problems.speech.options import NORMALISATIONS, TARGET_GRADIENTS
from bilevel.problems.speech.protocol import Protocol, vocabulary_of
from bilevel.problems.speech.recognition import (
    BeamSearch,
    FineTuningOptions,
    estimate_ngrams,
    read_arpa,
)
from bilevel.problems.speech.sources import SpeechSource, StoredSpeech, StreamedSpeech

ALL_METHODS = ("scratch", "best-rq", "birq", "relabel")
STAGES = ("pretrain", "finetune", "evaluate", "all")
QUICK = {"steps": 30, "finetuning_steps": 30, "minutes": 2.0, "labelled_minutes": 1.0,
         "test_utterances": 24, "seeds": 1}  # fmt: skip


def main() -> None:
    args = parse_arguments()
    began = time.perf_counter()
    try:
        require("matplotlib", "plot")
        start_processes(args)
        if args.data == "espeak" and dist.is_initialized():
            raise OptionError("the espeak-ng corpus is small: train on it in one process")
        if args.resume:
            require_same_run(args.out, args, FREE)
        # All that may be refused comes before anything is removed.
        options, protocol = model_options(args), protocol_of(args)
        source, labelled = read_source(args)
        search = beam_search(args, source, labelled)
        seeds = range(args.seed, args.seed + args.seeds)
        arms = [(method, seed) for seed in seeds for method in args.method]
        if args.stage in ("pretrain", "all") and set(args.method) != {"scratch"}:
            source.pretraining(args.seed)
        for method, seed in arms:
            require_earlier_stage(args, args.out / f"{method}-seed{seed}")
        if rank() == 0:
            make_folder(args.out)
            write_configuration(args.out, args)
            for method, seed in arms if not args.resume else ():  # nothing of another run stays
                begin_anew(args.out / f"{method}-seed{seed}", args.stage)
        gather(None)  # all see what was written, and what was removed
        for method, seed in arms:
            run_arm(args, protocol, options, source, search, method, seed)
        if rank() == 0 and args.stage != "pretrain":
            report(args, options, source, search)
            print(f"\n{time.perf_counter() - began:.0f} s; everything is in {args.out}/")
    except (BilevelError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on from the last checkpoint")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_argument_group("the speech").add_argument
    data("--data", default="espeak", help="espeak (default), or speech to pretrain on")
    data("--labelled", type=Path, help="speech with transcripts to fine-tune on")
    data("--test", type=Path, help="speech with transcripts to be recognised")
    data("--format", choices=("auto", *FORMATS), default="auto",
         help="of these corpora (default: recognised)")  # fmt: skip
    data("--minutes", type=float, default=20.0,
         help="espeak: of speech without labels (default: %(default)s)")  # fmt: skip
    data("--labelled-minutes", type=float, default=5.0, help="espeak: with labels (default: 5)")
    data("--test-utterances", type=int, default=150, help="espeak: to test on (default: 150)")

    what = parser.add_argument_group("what is trained").add_argument
    what("--method", choices=ALL_METHODS, nargs="+", default=list(ALL_METHODS),
         help="default: all four")  # fmt: skip
    what("--stage", choices=STAGES, default="all",
         help="finetune takes the pretrained models that --out holds, evaluate the fine-tuned "
              "ones (default: all)")  # fmt: skip
    what("--preset", choices=PRESETS, default="tiny", help="default: %(default)s")
    what("--seed", type=int, default=0, help="of weights, quantisers and batches (default: 0)")
    what("--seeds", type=int, default=1, help="how many, from --seed on (default: 1)")

    label = parser.add_argument_group("the labels; defaults are the preset's").add_argument
    label("--layer", type=int, help="k: the enhanced labels come from this layer")
    label("--codes", type=int, help="codes of the codebook")
    label("--codebooks", type=int, help="number of codebooks")
    label("--prediction-heads", type=int, help="1: one softmax for both labels; 2: one each")
    label("--logit-scale", type=float, help="of the cosines, against the Gumbel noise")
    label("--normalisation", choices=NORMALISATIONS, help="of the vectors that are quantised")
    label("--target-gradient", choices=TARGET_GRADIENTS,
          help="through the enhanced labels; full is the paper's Algorithm 1")  # fmt: skip
    label("--gradient-cap", type=float,
          help="of capped: its norm at layer k over the rest's (default: 0.1)")  # fmt: skip
    label("--penalty", type=float, default=24.0, help="w2 / w1 (default: %(default)s)")
    label("--anchor-share", type=float, default=0.0,
          help="first share of the steps, for the anchor labels alone (default: 0)")  # fmt: skip

    search = parser.add_argument_group("the beam search").add_argument
    search("--lm", type=Path, metavar="FILE",
           help="ARPA language model over phones or words (default: estimated)")  # fmt: skip
    search("--lm-order", type=int, default=3, help="of the estimated one (default: 3)")
    search("--lm-weight", type=float, default=0.5, help="default: %(default)s")
    search("--insertion-bonus", type=float, default=1.0, help="of a phone or word (default: 1)")
    search("--beam", type=int, default=50, help="prefixes kept (default: %(default)s)")

    train = parser.add_argument_group("how").add_argument
    train("--steps", type=int, default=700, help="of pretraining (default: %(default)s)")
    train("--lr", type=float, default=3e-3, help="of pretraining, its peak (default: %(default)s)")
    train("--batch", type=int, default=16, help="espeak: crops a step (default: %(default)s)")
    train("--batch-seconds", type=float, default=120.0,
          help="of audio a step, of all processes, for other corpora (default: 120)")  # fmt: skip
    train("--accumulate", type=int, default=1, help="batches a step (default: 1)")
    train("--finetuning-steps", type=int, default=300, help="default: %(default)s")
    train("--encoder-lr", type=float, default=2e-3, help="of fine-tuning (default: %(default)s)")
    train("--head-lr", type=float, default=1e-2, help="of the new output layer (default: 0.01)")
    train("--frozen-steps", type=int,
          help="first of them, for the output layer alone (default: a fifth)")  # fmt: skip
    train("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    train("--bf16", action="store_true", help="mixed precision")
    train("--compile", action="store_true", help="compile the encoder's layers")
    train("--workers", type=int, default=4, help="threads that read audio (default: 4)")
    train("--checkpoint-every", type=int, default=500, help="steps (default: 500)")
    train("--tensorboard", action="store_true", help="write logs for TensorBoard")
    train("--resume", action="store_true", help="go on where the last run in --out stood")
    train("--quick", action="store_true", help="a few steps on a small corpus: under a minute")
    train("--out", type=Path, default=Path("results/birq_speech"), help="default: %(default)s")
    args = parse(parser, QUICK)
    if args.data != "espeak":
        args.data = Path(args.data)
    if args.frozen_steps is None:
        args.frozen_steps = args.finetuning_steps // 5
    counts = ("steps", "finetuning_steps", "seeds", "batch", "accumulate", "checkpoint_every",
              "lm_order", "beam")  # fmt: skip
    require_least(parser, args, seed=0, frozen_steps=0, **dict.fromkeys(counts, 1))
    require_least(parser, args, batch_seconds=0.1, minutes=0.1, labelled_minutes=0.1,
                  test_utterances=1, workers=0)  # fmt: skip
    require_corpora(parser, args)
    return args


def require_corpora(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Own speech comes in three parts, of which pretraining needs the first alone."""
    named = [args.labelled is not None, args.test is not None]
    if args.data == "espeak":
        if any(named) or args.format != "auto":
            parser.error("--labelled, --test and --format go with --data FOLDER")
    elif not all(named) and args.stage != "pretrain":
        parser.error("--data FOLDER needs --labelled and --test, unless for --stage pretrain")


def model_options(args: argparse.Namespace) -> SpeechOptions:
    options = PRESETS[args.preset]
    names = ("layer", "codes", "codebooks", "prediction_heads", "logit_scale", "normalisation",
             "target_gradient", "gradient_cap")  # fmt: skip
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(options, labels=dataclasses.replace(options.labels, **given))


def protocol_of(args: argparse.Namespace) -> Protocol:
    autocast = torch.bfloat16 if args.bf16 else None
    return Protocol(
        pretraining=PretrainingOptions(
            steps=args.steps, lr=args.lr, penalty=args.penalty, anchor_share=args.anchor_share,
            accumulate=args.accumulate, autocast=autocast,
        ),
        finetuning=FineTuningOptions(
            head_lr=args.head_lr, encoder_lr=args.encoder_lr, frozen_steps=args.frozen_steps,
            autocast=autocast,
        ),
        finetuning_steps=args.finetuning_steps,
        compile=args.compile,
    )  # fmt: skip


def read_source(args: argparse.Namespace) -> tuple[SpeechSource, list[Utterance]]:
    """The speech, and the utterances of it that may be learnt to recognise."""
    if args.data == "espeak":
        corpus = espeak_corpus(
            train_minutes=args.minutes,
            labelled_minutes=args.labelled_minutes,
            test_utterances=args.test_utterances,
        )
        source = dataclasses.replace(StoredSpeech.read(corpus), batch_size=args.batch)
        return source.to(args.device), corpus.labelled
    train, labelled, test = (
        [] if place is None else read_corpus(place, format=args.format)
        for place in (args.data, args.labelled, args.test)
    )
    source = StreamedSpeech(
        train, labelled, test, torch.device(args.device), args.batch_seconds, workers=args.workers
    )
    return source, labelled


def beam_search(
    args: argparse.Namespace, source: SpeechSource, labelled: list[Utterance]
) -> BeamSearch | None:
    """With the language model of --lm, or one of the labelled transcripts; none to pretrain."""
    if args.stage == "pretrain":
        return None
    vocabulary = vocabulary_of(source)
    if args.lm is not None:
        model = read_arpa(args.lm)
    else:
        model = estimate_ngrams([vocabulary.words(each) for each in labelled], args.lm_order)
    return BeamSearch(
        vocabulary=vocabulary, language_model=model, width=args.beam,
        alpha=args.lm_weight, beta=args.insertion_bonus,
    )  # fmt: skip


def require_earlier_stage(args: argparse.Namespace, folder: Path) -> None:
    """Refuse to go on from an arm that is missing, or that had other options."""
    if args.stage == "finetune":
        if not (folder / "pretrained" / "config.json").is_file():
            raise OptionError(f"no pretrained model in {folder}: run --stage pretrain first")
        require_same_run(folder, args, FREE | FINETUNING, PRETRAINING)
    elif args.stage == "evaluate":
        if not (folder / "result.json").is_file():
            raise OptionError(f"no fine-tuned recogniser in {folder}: run --stage finetune first")
        require_same_run(folder, args, FREE | SEARCH)


def begin_anew(folder: Path, stage: str) -> None:
    """Remove an earlier run's arm, but for what the stage begins from."""
    if stage == "finetune":
        for file in (*folder.glob("finetuning.*"), folder / "result.json"):
            file.unlink(missing_ok=True)
        shutil.rmtree(folder / "recogniser", ignore_errors=True)
    elif stage != "evaluate":
        shutil.rmtree(folder, ignore_errors=True)


def report(
    args: argparse.Namespace, options: SpeechOptions, source: SpeechSource, search: BeamSearch
) -> None:
    """Table, figures and summary of every arm of these options that --out holds a result of."""
    from speech_report import draw, table

    methods: dict[str, list[dict]] = {}
    histories = []
    for method in ALL_METHODS:
        for folder in sorted(args.out.glob(f"{method}-seed[0-9]*")):
            seed = folder.name.rpartition("-seed")[2]
            if not (seed.isdecimal() and (folder / "result.json").is_file()):
                continue  # also a copy that somebody keeps there
            try:
                require_same_run(folder, args, FREE)
            except OptionError as error:
                print(f"left out: {error}")
                continue
            methods.setdefault(method, []).append(read_result(folder))
            if len(history := read_history(folder / "history.csv")):
                histories.append(history)
    summary = {
        "corpus": args.data,
        "preset": args.preset,
        "device": args.device,
        "codes": options.labels.codes,
        "quick": args.quick,
        "skipped": source.skipped,
        "unit": next(iter(methods.values()))[0]["unit"],
        "language_model": {
            "file": args.lm,
            "order": search.language_model.order,
            "weight": search.alpha,
            "insertion_bonus": search.beta,
            "beam": search.width,
        },
        "test_utterances": next(iter(methods.values()))[0]["test_utterances"],
        "methods": methods,
    }
    history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame()
    write_csv(args.out / "history.csv", history)
    write_json(args.out / "summary.json", summary)
    draw(summary, history, args.out)
    print(table(summary))


if __name__ == "__main__":
    main()
