"""The arms of birq_speech.py: pretrain, fine-tune, measure, and what each keeps in its folder."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pandas as pd
import torch
from output import peak_memory, write_configuration, write_csv, write_json
from runs import read_result, require_same_run

from bilevel import checkpoints
from bilevel.callbacks import Checkpoint, TensorBoard
from bilevel.distributed import gather, rank
from bilevel.errors import OptionError
from bilevel.problems.speech import SpeechModel, SpeechOptions
from bilevel.problems.speech.protocol import Decoded, Pretrained, Protocol, decode, is_aligned
from bilevel.problems.speech.recognition import BeamSearch, Recogniser
from bilevel.problems.speech.sources import SpeechSource

#: What arms may differ by that are compared, or one run and its resumption.
FREE = {"stage", "method", "seed", "seeds", "checkpoint_every", "tensorboard", "workers", "device",
        "quick"}  # fmt: skip
#: What an evaluation may be given anew, and what fine-tuning may.
SEARCH = {"lm", "lm_order", "lm_weight", "insertion_bonus", "beam"}
FINETUNING = SEARCH | {"finetuning_steps", "encoder_lr", "head_lr", "frozen_steps", "labelled",
                       "labelled_minutes", "test"}  # fmt: skip
#: What an arm was pretrained with.
PRETRAINING = "pretraining.json"


def run_arm(
    args: argparse.Namespace,
    protocol: Protocol,
    options: SpeechOptions,
    source: SpeechSource,
    search: BeamSearch | None,
    method: str,
    seed: int,
) -> None:
    """Pretrain, fine-tune and measure, or leave out what an interrupted run finished."""
    folder = args.out / f"{method}-seed{seed}"
    result = folder / "result.json"
    if args.resume and result.is_file() and args.stage != "evaluate":
        return
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"== {method}, seed {seed}", flush=True)
    if args.stage == "evaluate":
        numbers = evaluate(args, source, search, folder)
    else:
        options = dataclasses.replace(
            options, labels=dataclasses.replace(options.labels, seed=seed)
        )
        if args.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(args.device)
        pretrained = pretrain(args, protocol, options, source, method, seed, folder)
        if args.stage == "pretrain":
            return
        numbers = measure(args, protocol, source, search, pretrained, method, seed, folder)
    if rank() == 0:
        write_configuration(folder, args)
        write_json(result, numbers)


def pretrain(
    args: argparse.Namespace,
    protocol: Protocol,
    options: SpeechOptions,
    source: SpeechSource,
    method: str,
    seed: int,
    folder: Path,
) -> Pretrained:
    """The arm's pretrained model: read where it was trained before, or trained now."""
    saved, table = folder / "pretrained", folder / "history.csv"
    # Of this run, as what was there before was removed; process 0 alone knows when it looked.
    if gather((saved / "config.json").is_file())[0]:
        history = read_history(table)
        model = SpeechModel.from_pretrained(saved).to(args.device)
        return Pretrained(model, history, seconds_of(history))
    teacher = None
    if method == "relabel":
        place = teacher_of(args, folder, seed)
        if rank() == 0 and not place.is_dir():
            print("   best-rq, to label by", flush=True)
        teacher = pretrain(args, protocol, options, source, "best-rq", seed, place).model
    checkpoint = folder / "pretraining.pt"
    callbacks = [Checkpoint(checkpoint, every=args.checkpoint_every)]
    if args.tensorboard:
        callbacks.append(TensorBoard(folder / "tensorboard"))
    found = protocol.pretrain(
        source, options, method, seed,
        teacher=teacher, device=args.device, callbacks=callbacks,
        log_every=max(1, args.steps // 100),
        resume=checkpoint if args.resume and checkpoints.exists(checkpoint) else None,
    )  # fmt: skip
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_configuration(folder, args, PRETRAINING)
        if len(found.history):
            write_csv(table, found.history.assign(method=method, seed=seed))
        found.model.save_pretrained(saved)  # the last: where it is, the rest is
    gather(None)  # what was saved may be read next
    return found


def teacher_of(args: argparse.Namespace, folder: Path, seed: int) -> Path:
    """Where relabel's teacher is: an arm with these options, or a part of relabel's own."""
    place = args.out / f"best-rq-seed{seed}"
    if "best-rq" in args.method:
        return place
    try:
        require_same_run(place, args, FREE | FINETUNING, PRETRAINING)
    except OptionError:
        return folder / "teacher"
    return place


def read_history(table: Path) -> pd.DataFrame:
    """The records of an arm's pretraining; none where nothing was trained."""
    try:
        return pd.read_csv(table) if table.is_file() else pd.DataFrame()
    except ValueError as error:
        raise OptionError(f"{table} is damaged: begin a new run there") from error


def seconds_of(history: pd.DataFrame) -> float:
    return float(history["seconds"].iloc[-1]) if len(history) else 0.0


def measure(
    args: argparse.Namespace,
    protocol: Protocol,
    source: SpeechSource,
    search: BeamSearch,
    pretrained: Pretrained,
    method: str,
    seed: int,
    folder: Path,
) -> dict:
    found = protocol.represent(source, pretrained.model) if is_aligned(source) else None
    checkpoint = folder / "finetuning.pt"
    heard = protocol.recognise(
        source, pretrained.model.encoder, seed, search=search, device=args.device,
        callbacks=[Checkpoint(checkpoint, every=args.checkpoint_every)],
        resume=checkpoint if args.resume and checkpoints.exists(checkpoint) else None,
    )  # fmt: skip
    if rank() == 0:
        write_csv(folder / "finetuning.csv", heard.history)
        heard.recogniser.save_pretrained(folder / "recogniser")
    teacher = teacher_of(args, folder, seed) / "history.csv" if method == "relabel" else None
    return {
        "method": method,
        "seed": seed,
        **errors(heard.greedy, heard.beam, folder),
        "probes": [each.value for each in found.probes] if found else [],
        "anchor": dataclasses.asdict(found.anchor) if found else None,
        "enhanced": dataclasses.asdict(found.enhanced) if found else None,
        "steps": int(pretrained.history["step"].iloc[-1]) if len(pretrained.history) else 0,
        "frames": int(pretrained.history["frames"].iloc[-1]) if len(pretrained.history) else 0,
        "pretraining_seconds": pretrained.seconds,
        "teacher_seconds": seconds_of(read_history(teacher)) if teacher else 0.0,
        "finetuning_seconds": heard.seconds,
        "peak_memory_bytes": peak_memory(args.device),
    }


def evaluate(
    args: argparse.Namespace, source: SpeechSource, search: BeamSearch, folder: Path
) -> dict:
    """The arm's result, with the errors of its fine-tuned recogniser counted anew."""
    recogniser = Recogniser.from_pretrained(folder / "recogniser").to(args.device)
    search = dataclasses.replace(search, vocabulary=recogniser.vocabulary)
    found = errors(decode(recogniser, source), decode(recogniser, source, search), folder)
    return {**read_result(folder), **found}


def errors(greedy: Decoded, beam: Decoded, folder: Path) -> dict:
    """Error rates by decoder, with what was heard beside them."""
    heard = pd.DataFrame([dataclasses.asdict(each) for each in greedy.transcripts])
    heard = heard.rename(columns={"hypothesis": "greedy"})
    heard["beam"] = [each.hypothesis for each in beam.transcripts]
    if rank() == 0:
        write_csv(folder / "transcripts.csv", heard)
    found: dict = {"unit": greedy.unit, "test_utterances": len(heard)}
    for name, decoded in (("greedy", greedy), ("beam", beam)):
        voices = [each.speaker for each in decoded.transcripts]
        rate, characters = decoded.errors.pooled(voices).rate(), decoded.character_errors
        found[name] = {
            "error_rate": rate.value,
            "low": rate.low,
            "high": rate.high,
            "character_error_rate": None if characters is None else characters.rate().value,
            "seconds": decoded.seconds,
        }
    return found
