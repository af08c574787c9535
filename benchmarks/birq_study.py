"""BiRQ beside BEST-RQ, relabelling and no pretraining: what its labels become, and what is learnt.

Each arm is a run of the whole protocol on speech by espeak-ng: pretrain, measure what layers and
labels say about the phones of voices never heard, fine-tune on minutes of labels, count phone
errors. Arms and seeds run in processes of their own, several at a time; results are appended to
results.jsonl as they come, and a run that finds its result there does not repeat it.

    python benchmarks/birq_study.py --study collapse --preset tiny --steps 2000
    python benchmarks/birq_study.py --study learning --preset small --steps 3000 --device cuda
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import multiprocessing
import time
import traceback
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from bounds import device, number
from kept_results import kept_lines, require_same_options

from bilevel.files import replacing
from bilevel.problems.speech import PRESETS, MaskOptions, PretrainingOptions, SpeechModel
from bilevel.problems.speech.data import espeak_corpus
from bilevel.problems.speech.measures import ErrorCounts
from bilevel.problems.speech.protocol import Protocol, vocabulary_of
from bilevel.problems.speech.recognition import BeamSearch, FineTuningOptions, estimate_ngrams
from bilevel.problems.speech.sources import StoredSpeech

FULL = {"target_gradient": "full"}
CAPPED = {"target_gradient": "capped"}
SHRUNK, WHITE = {"normalisation": "shrink"}, {"normalisation": "whiten"}
#: Study -> arm -> method, label options, pretraining options, factor of the steps.
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    # The defaults on several quantisers, and what the gradient through the labels does to them.
    "collapse": {
        "detached, shrink (default)": {"labels": {}},
        "detached, whiten": {"labels": WHITE},
        "detached, standardise": {"labels": {"normalisation": "standardise"}},
        "detached, layer norm": {"labels": {"normalisation": "layernorm"}},
        "detached, two heads": {"labels": {"prediction_heads": 2}},
        "full, shrink": {"labels": FULL},
        "full, whiten": {"labels": FULL | WHITE},
        "full, standardise": {"labels": FULL | {"normalisation": "standardise"}},
        "full, layer norm": {"labels": FULL | {"normalisation": "layernorm"}},
        "full, two heads": {"labels": FULL | {"prediction_heads": 2}},
        "full, rate / 10": {"labels": FULL, "rate": 0.1},
        "full, penalty x 10": {"labels": FULL, "pretraining": {"penalty": 240.0}},
        "full, penalty x 100": {"labels": FULL, "pretraining": {"penalty": 2400.0}},
        "full, scale 10": {"labels": FULL | {"logit_scale": 10.0}},
        "full, temperature 5": {"labels": FULL | {"temperature": 5.0}},
        "full, soft": {"labels": FULL | {"selection": "soft"}},
        "full, anchors first": {"labels": FULL, "pretraining": {"anchor_share": 0.5}},
        "capped at 0.3": {"labels": CAPPED | {"gradient_cap": 0.3}},
        "capped at 0.03": {"labels": CAPPED | {"gradient_cap": 0.03}},
        "capped at 0.003": {"labels": CAPPED | {"gradient_cap": 0.003}},
    },
    # The arms of the experiment, at equal steps and at equal compute.
    "learning": {
        "scratch": {"method": "scratch"},
        "BEST-RQ": {"method": "best-rq"},
        "BEST-RQ, equal compute": {"method": "best-rq", "compute": "birq"},
        "BiRQ": {},
        "BiRQ, full gradient": {"labels": FULL},
        "relabel": {"method": "relabel"},
    },
    # Is there a setting where BiRQ wins?
    "search": {
        "k = 0.3 K": {"layer": 0.3},
        "k = 0.5 K": {"layer": 0.5},
        "k = 0.9 K": {"layer": 0.9},
        "two heads, penalty 4": {
            "labels": {"prediction_heads": 2}, "pretraining": {"penalty": 4.0}
        },
        "two heads, penalty 1": {
            "labels": {"prediction_heads": 2}, "pretraining": {"penalty": 1.0}
        },
        "penalty 1": {"pretraining": {"penalty": 1.0}},
        "scale 10": {"labels": {"logit_scale": 10.0}},
        "scale 100": {"labels": {"logit_scale": 100.0}},
        "no noise": {"labels": {"noise": 0.0}},
        "whiten": {"labels": WHITE},
        "anchors first, penalty 1": {"pretraining": {"penalty": 1.0, "anchor_share": 0.5}},
        "anchors first, two heads, penalty 1": {
            "labels": {"prediction_heads": 2},
            "pretraining": {"penalty": 1.0, "anchor_share": 0.5},
        },
    },
}  # fmt: skip
NOT_BEGUN = "not begun: out of time"
_SOURCE: StoredSpeech | None = None


def main() -> None:
    args = parse_arguments()
    prepare(args)  # a worker that cannot begin is begun again and again
    require_same_options(
        args.out, args, free={"study", "arms", "seeds", "jobs", "stop_after", "out"}
    )
    results = args.out / "results.jsonl"
    done = {key_of(each) for each in read(results)}
    failed = 0
    jobs = [
        {"study": study, "arm": arm, "seed": seed}
        for study in args.study
        for seed in range(args.seeds)
        for arm in STUDIES[study]
        if args.arms is None or arm in args.arms
    ]
    jobs = [job for job in jobs if key_of(job) not in done]
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(args.jobs, max(1, len(jobs))), prepare, (args,)) as pool:
        for result in pool.imap_unordered(guarded, [(args, job, began) for job in jobs]):
            with results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            failed += "error" in result and result["error"] != NOT_BEGUN
            note = result.get("error") or f"{result['seconds']:.0f} s"
            print(f"{result['study']}: {result['arm']}, seed {result['seed']}: {note}", flush=True)
    tables(read(results), args.out)
    if failed:
        raise SystemExit(f"{failed} of {len(jobs)} runs failed: see {results}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option, count, minutes = parser.add_argument, number(int, 1), number(float, 0.1)
    option("--study", choices=STUDIES, nargs="+", default=["collapse"])
    option("--arms", nargs="+", help="of the studies' arms, these only")
    option("--seeds", type=count, default=3, help="of encoder, quantiser and batches: 0, 1, ...")
    option("--preset", choices=PRESETS, default="tiny")
    option("--codes", type=number(int, 2), help="the codebook's size, where not the preset's")
    option("--codebooks", type=count, help="how many, where not the preset's")
    option("--steps", type=count, default=2000, help="of pretraining (default: %(default)s)")
    option("--lr", type=number(float, 1e-9), default=3e-3, help="default: %(default)s")
    option("--batch", type=count, default=16, help="crops a step (default: %(default)s)")
    option("--crop", type=number(int, 4), default=160,
           help="feature frames of each (default: %(default)s)")  # fmt: skip
    option("--mask", type=float, nargs=2, metavar=("P", "SPAN"),
           help="probability and frames of a masked span, where not the preset's")  # fmt: skip
    option("--finetuning-steps", type=number(int, 0), default=300, help="0: leave it out")
    option("--finetuning", type=float, nargs=3, action="append",
           metavar=("HEAD", "ENCODER", "STEPS"),
           help="rates of output layer and encoder, and first steps in which the encoder rests; "
                "may be repeated (default: 0.01 0.002 60)")  # fmt: skip
    option("--labelled-minutes", type=minutes, default=5.0)
    option("--minutes", type=minutes, default=30.0, help="of speech without labels")
    option("--corpus-seed", type=number(int, 0), default=0)
    option("--stores", type=Path, help="file of features, made where it is missing")
    option("--device", type=device, default="cpu")
    option("--bf16", action="store_true", help="mixed precision in pretraining")
    option("--jobs", type=count, default=1, help="processes at a time (default: %(default)s)")
    option("--stop-after", type=float, help="seconds after which no further run is begun")
    option("--out", type=Path, default=Path("results/birq_study"))
    args = parser.parse_args()
    known = {arm for study in args.study for arm in STUDIES[study]}
    if unknown := set(args.arms or ()) - known:
        parser.error(f"no arm {min(unknown)!r} in these studies, but {', '.join(sorted(known))}")
    args.finetuning = args.finetuning or [[0.01, 0.002, 60]]
    if args.stores is None:
        args.stores = args.out / "stores.pt"
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def stores(args: argparse.Namespace) -> StoredSpeech:
    """The features of --stores, made where it is missing."""
    sizes = {
        "train_minutes": args.minutes, "labelled_minutes": args.labelled_minutes,
        "seed": args.corpus_seed,
    }  # fmt: skip
    if not args.stores.is_file():
        with replacing(args.stores) as beside:
            torch.save((sizes, StoredSpeech.read(espeak_corpus(**sizes))), beside)
    try:
        found, source = torch.load(args.stores, weights_only=False)  # a file of this script's
    except Exception as error:  # whatever the damaged bytes happen to decode to
        raise SystemExit(f"{args.stores} is no file of features: remove it ({error})") from error
    if found != sizes:
        raise SystemExit(f"{args.stores} holds the features of {found}: give another file")
    return source


def prepare(args: argparse.Namespace) -> None:
    """Read the features once a process."""
    global _SOURCE
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # collapse is what is studied
    _SOURCE = dataclasses.replace(
        stores(args).to(args.device), batch_size=args.batch, crop_frames=args.crop
    )


def guarded(task: tuple[argparse.Namespace, dict, float]) -> dict:
    """A run's result, or why there is none."""
    args, job, began = task
    if args.stop_after and time.perf_counter() - began > args.stop_after:
        return {**job, "error": NOT_BEGUN}
    try:
        return {**job, **run(args, job)}
    except Exception:
        return {**job, "error": traceback.format_exc(limit=-2)}


def run(args: argparse.Namespace, job: dict) -> dict:
    assert _SOURCE is not None
    arm = STUDIES[job["study"]][job["arm"]]
    seed, method = job["seed"], arm.get("method", "birq")
    began = time.perf_counter()
    options = PRESETS[args.preset]
    share = options.labels.layer / options.encoder.layers
    changes = {"seed": seed, **arm.get("labels", {})}
    changes |= {name: given for name in ("codes", "codebooks") if (given := getattr(args, name))}
    if "layer" in arm:
        changes["layer"] = max(1, round(arm["layer"] * options.encoder.layers))
    labels = dataclasses.replace(options.labels, **changes)
    options = dataclasses.replace(options, labels=labels)
    if args.mask:
        mask = MaskOptions(probability=args.mask[0], span=int(args.mask[1]))
        options = dataclasses.replace(options, mask=mask)
    # BiRQ's step passes k of K layers once more; the same compute buys BEST-RQ more steps.
    steps = round(args.steps * (1 + share / 3)) if "compute" in arm else args.steps
    protocol = Protocol(
        pretraining=PretrainingOptions(
            steps=steps,
            lr=args.lr * arm.get("rate", 1.0),
            autocast=torch.bfloat16 if args.bf16 else None,
            **arm.get("pretraining", {}),
        ),
    )
    common = {"device": args.device, "log_every": 50, "progress": False}
    teacher = None
    if method == "relabel":
        # The arm BEST-RQ has trained this model; without it, it is trained now.
        saved = args.out / f"best-rq-seed{seed}"
        if (saved / "config.json").is_file():
            teacher = SpeechModel.from_pretrained(saved).to(args.device)
        else:
            teacher = protocol.pretrain(_SOURCE, options, "best-rq", seed, **common).model
    found = protocol.pretrain(_SOURCE, options, method, seed, teacher=teacher, **common)
    if job["arm"] == "BEST-RQ":
        found.model.save_pretrained(args.out / f"best-rq-seed{seed}")
    measured = protocol.represent(_SOURCE, found.model)
    result = {
        "probes": [each.value for each in measured.probes],
        "anchor": dataclasses.asdict(measured.anchor),
        "enhanced": dataclasses.asdict(measured.enhanced),
        "steps": steps,
        "frames": int(found.history["frames"].iloc[-1]) if len(found.history) else 0,
        "pretraining_seconds": found.seconds,
    }
    if method != "scratch":
        result |= along_the_run(found.history)
    for head_lr, encoder_lr, frozen in args.finetuning if args.finetuning_steps else ():
        tuned = dataclasses.replace(
            protocol,
            finetuning=FineTuningOptions(
                head_lr=head_lr, encoder_lr=encoder_lr, frozen_steps=int(frozen)
            ),
            finetuning_steps=args.finetuning_steps,
        )
        heard = tuned.recognise(
            _SOURCE, copy.deepcopy(found.model.encoder), seed, search=phone_search(_SOURCE),
            device=args.device, progress=False,
        )  # fmt: skip
        result.setdefault("phone_errors", {})[f"{head_lr:g} {encoder_lr:g} {frozen:g}"] = {
            "greedy": heard.greedy.errors.errors.tolist(),
            "beam": heard.beam.errors.errors.tolist(),
        }
        result["phones"] = heard.greedy.errors.lengths.tolist()
    return {**result, "seconds": time.perf_counter() - began}


def phone_search(source: StoredSpeech) -> BeamSearch:
    """By trigrams of the phones in the labelled transcripts."""
    vocabulary = vocabulary_of(source)
    transcripts = [vocabulary.words(each) for each in source.labelled_store.utterances]
    return BeamSearch(vocabulary=vocabulary, language_model=estimate_ngrams(transcripts))


def along_the_run(history: pd.DataFrame) -> dict:
    """Ends and extremes of the training batches' statistics; means over five logged records."""
    last = history.iloc[-5:]
    found = {"G": last["lower"].mean(), "F": last["upper"].mean()}
    if "enhanced_perplexity" in history:
        ratio = history["enhanced_perplexity"] / history["anchor_perplexity"]
        smooth = ratio.rolling(5).mean()
        found |= {
            "perplexity_ratio": smooth.iloc[-1],
            "least_perplexity_ratio": smooth.min(),
            "nearest": last["nearest"].mean(),
        }
    if "gradient_ratio" in history:
        found["gradient_ratio"] = history["gradient_ratio"].median()
    return found


# Results ----------------------------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    return [each for each in kept_lines(path) if "error" not in each]


def key_of(each: dict) -> tuple:
    return each["study"], each["arm"], each["seed"]


def tables(results: list[dict], out: Path) -> None:
    """Means over the seeds, and their standard deviations in the file."""
    if not results:
        return
    rows = []
    for each in results:
        row = {
            "study": each["study"],
            "arm": each["arm"],
            "best layer": max(each["probes"][2:]),
            "input": each["probes"][0],
            "G": each.get("G"),
            "F": each.get("F"),
            "ratio": each.get("perplexity_ratio"),
            "least ratio": each.get("least_perplexity_ratio"),
            "gradient ratio": each.get("gradient_ratio"),
            "nearest": each.get("nearest"),
        }
        for kind in ("anchor", "enhanced"):
            for measure in ("perplexity", "information", "accuracy"):
                row[f"{kind} {measure}"] = each[kind][measure]
        rows.append(row)
    groups = pd.DataFrame(rows).groupby(["study", "arm"], sort=False)
    table = groups.mean()
    table.insert(0, "seeds", groups.size())
    table.to_csv(out / "means.csv")
    groups.std().to_csv(out / "deviations.csv")
    for study, part in table.groupby("study", sort=False):
        print(f"\n{study}\n{part.droplevel(0).to_string(float_format='{:.3f}'.format)}")
    errors = error_table(results)
    if len(errors):
        errors.to_csv(out / "phone_errors.csv", index=False)
        print(f"\nphone errors\n{errors.to_string(index=False, float_format='{:.4f}'.format)}")


def error_table(results: list[dict]) -> pd.DataFrame:
    """Phone error rates, and paired differences from the first two arms over the common seeds.

    Intervals draw sentences; the errors of the seeds on a sentence are drawn together.
    """
    counts: dict[tuple, dict[int, ErrorCounts]] = {}
    for each in results:
        for rates, decoders in each.get("phone_errors", {}).items():
            for decoder, errors in decoders.items():
                by_seed = counts.setdefault((each["study"], rates, decoder, each["arm"]), {})
                by_seed[each["seed"]] = ErrorCounts(np.array(errors), np.array(each["phones"]))
    rows = []
    for (study, rates, decoder, arm), by_seed in counts.items():
        rate = together(by_seed, by_seed).rate()
        seeds = [float(each.rate().value) for each in by_seed.values()]
        row = {"arm": arm, "rates": rates, "decoder": decoder, "seeds": len(seeds),
               "rate": rate.value, "std": np.std(seeds, ddof=1) if len(seeds) > 1 else np.nan,
               "low": rate.low, "high": rate.high}  # fmt: skip
        for other in ("scratch", "BEST-RQ"):
            reference = counts.get((study, rates, decoder, other), {})
            common = by_seed.keys() & reference.keys()
            if other != arm and common:
                found = together(by_seed, common).minus(together(reference, common))
                name = f"minus {other}"
                row |= {name: found.value, f"{name}, low": found.low, f"{name}, high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def together(by_seed: dict[int, ErrorCounts], seeds: Collection[int]) -> ErrorCounts:
    """Sums over these seeds, by sentence."""
    return ErrorCounts(
        np.sum([by_seed[seed].errors for seed in seeds], axis=0),
        np.sum([by_seed[seed].lengths for seed in seeds], axis=0),
    )


if __name__ == "__main__":
    main()
