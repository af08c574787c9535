"""Records, tokens and batches, and what is refused of each."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import INSTRUCTIONS, PREFERENCES, base, instructions, preferences, tokenizer

from bilevel.errors import DatasetError, OptionError
from bilevel.problems.llm import (
    Instruction,
    Preference,
    TokenBatch,
    TokenLoader,
    Tokens,
    TwoLevelModel,
    evaluate,
    library_corpus,
    read_records,
    reference_log_probabilities,
    sequence_log_probabilities,
    small_base,
    small_model,
    token_log_probabilities,
    tokenize,
    write_records,
)
from bilevel.problems.llm.batches import first_fit


def jsonl(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


# Records ----------------------------------------------------------------------------------------


def test_records_are_written_and_read(tmp_path):
    write_records(PREFERENCES, tmp_path / "p.jsonl")
    found = read_records(Preference, tmp_path / "p.jsonl", template="{}", first=2, count=3)
    assert tuple(found) == PREFERENCES[2:5]


def test_columns_and_template(tmp_path):
    path = jsonl(
        tmp_path, {"question": "Why?", "answer": "So."}, "", {"question": "A", "answer": "B"}
    )
    columns = {"prompt": "question", "response": "answer"}
    found = list(read_records(Instruction, path, columns=columns))
    assert found == [
        Instruction("User: Why?\nAssistant: ", "So."),
        Instruction("User: A\nAssistant: ", "B"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (({"prompt": "a", "response": "b"}, {"prompt": "a"}), "row 2 has no 'response'"),
        (({"prompt": "a", "response": " "},), "row 1: response is empty"),
        (({"prompt": "a", "response": 3},), "row 1: response is a int, expected text"),
        (("{broken",), "row 1 is no JSON"),
        (("[1, 2]",), "row 1 is a list, expected an object"),
        (("",), "has 0 rows, and at least one are wanted"),
    ],
)
def test_malformed_rows_are_named(tmp_path, rows, message):
    with pytest.raises(DatasetError, match=message):
        list(read_records(Instruction, jsonl(tmp_path, *rows)))


def test_a_preference_of_equals_is_refused(tmp_path):
    path = jsonl(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "b"})
    with pytest.raises(DatasetError, match="row 1: chosen and rejected are the same"):
        list(read_records(Preference, path))


def test_missing_sources_and_too_few_rows_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match="cannot be read"):
        list(read_records(Instruction, tmp_path / "none.jsonl"))
    path = jsonl(tmp_path, {"prompt": "a", "response": "b"})
    with pytest.raises(DatasetError, match="has 1 rows, and 5 are wanted"):
        list(read_records(Instruction, path, count=5))
    with pytest.raises(DatasetError, match="fields of Instruction"):
        list(read_records(Instruction, path, columns={"answer": "x"}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DatasetError, match="cannot be loaded"):
        list(read_records(Instruction, str(tmp_path / "no-such-set")))


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_are_read_by_their_columns(tmp_path, streaming, monkeypatch):
    import datasets

    rows = [{"question": f"q{i}", "response": f"r{i}"} for i in range(5)]
    loaded = datasets.Dataset.from_list(rows)
    loaded = loaded.to_iterable_dataset() if streaming else loaded

    def load(name, split, streaming):
        assert (name, split) == ("Open-Orca/OpenOrca", "train")
        return loaded

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = list(
        read_records(Instruction, "Open-Orca/OpenOrca", first=1, count=2, streaming=streaming)
    )
    assert [each.response for each in found] == ["r1", "r2"]
    assert found[0].prompt == "User: q1\nAssistant: "


# Tokens -----------------------------------------------------------------------------------------


def test_prompt_and_response_decode_to_what_was_written():
    for record, (tokens,) in zip(INSTRUCTIONS, instructions(), strict=True):
        decode = tokenizer().decode
        assert decode(tokens.ids[:-1]) == record.prompt + record.response
        assert decode(tokens.ids[: tokens.prompt_length]) == record.prompt.rstrip(" ")
        assert tokens.ids[-1] == tokenizer().eos_token_id


def test_long_responses_are_cut_and_long_prompts_refused_or_dropped():
    length = max(item[0].prompt_length for item in instructions())
    items = tokenize(INSTRUCTIONS, tokenizer(), length + 1)
    assert all(len(tokens.ids) <= length + 1 for (tokens,) in items)
    assert min(tokens.response_length for (tokens,) in items) == 1
    with pytest.raises(DatasetError, match=r"record \d+: the prompt has .* leaves no room"):
        tokenize(INSTRUCTIONS, tokenizer(), length)
    assert 0 < len(tokenize(INSTRUCTIONS, tokenizer(), length, drop_long=True)) < len(INSTRUCTIONS)
    with pytest.raises(DatasetError, match="no record is left"):
        tokenize(INSTRUCTIONS, tokenizer(), 2, drop_long=True)


def test_tokenizers_that_do_not_fit_are_refused():
    model = TwoLevelModel(small_model(vocabulary=50, hidden=16, layers=1, heads=2))
    with pytest.raises(DatasetError, match=r"record 1 has the token id \d+, .* knows 50"):
        reference_log_probabilities(model, preferences())
    bare = train_tokenizer_without_end()
    with pytest.raises(DatasetError, match="no end-of-text token"):
        tokenize(INSTRUCTIONS, bare, 64)


def train_tokenizer_without_end():
    import copy

    bare = copy.deepcopy(tokenizer())
    bare.eos_token = None
    return bare


# Batches ----------------------------------------------------------------------------------------


def test_positions_predict_the_responses_tokens():
    items = preferences()[:5]
    (batch,) = TokenLoader(items, 5)
    assert batch.ids.shape[0] == 10
    wanted = [
        token for k in range(2) for item in items for token in item[k].ids[item[k].prompt_length :]
    ]
    assert batch.targets.tolist() == wanted
    assert torch.equal(batch.ids.reshape(-1)[batch.positions + 1], batch.targets)
    assert batch.lengths.tolist() == [item[k].response_length for k in range(2) for item in items]
    assert int(batch.mask.sum()) == sum(len(item[k].ids) for k in range(2) for item in items)


def test_padding_changes_no_log_probability():
    model = TwoLevelModel(base())

    def logs(sequences):
        batch = TokenBatch.of(sequences)
        tokens = token_log_probabilities(model.features(batch), model.weight, batch.targets)
        return sequence_log_probabilities(tokens, batch.lengths).detach()

    sequences = [item[0] for item in preferences()[:6]]
    assert len({len(each.ids) for each in sequences}) > 1
    alone = torch.cat([logs([each]) for each in sequences])
    torch.testing.assert_close(logs(sequences), alone, rtol=1e-6, atol=1e-6)


def test_order_depends_on_seed_and_epoch_and_can_be_entered_anywhere():
    loader = TokenLoader(instructions(), 5, seed=3)
    first = [batch.targets.tolist() for batch in loader]
    assert first == [batch.targets.tolist() for batch in TokenLoader(instructions(), 5, seed=3)]
    loader.skip(2)
    assert [batch.targets.tolist() for batch in loader] == first[2:]
    loader.set_epoch(1)
    assert [batch.targets.tolist() for batch in loader] != first
    assert len(first) == len(loader) == len(instructions()) // 5


def test_batches_of_a_step_share_its_number_of_tokens():
    loader = TokenLoader(instructions(), 5, seed=3, accumulate=2)
    batches = list(loader)
    assert len(batches) == len(loader) == 2 * (len(instructions()) // 10)
    for one, other in zip(batches[::2], batches[1::2], strict=True):
        assert one.count == other.count == (len(one.targets) + len(other.targets)) / 2
    assert len({batch.count for batch in batches}) > 1
    loader.skip(3)
    assert next(iter(loader)).count == batches[3].count


def test_packed_rows_hold_every_sequence_once_and_little_else():
    items = preferences()[:12]
    (batch,) = TokenLoader(items, 12, row_length=64)
    (padded,) = TokenLoader(items, 12)
    assert batch.targets.tolist() == padded.targets.tolist()
    assert batch.lengths.tolist() == padded.lengths.tolist()
    assert torch.equal(batch.ids.reshape(-1)[batch.positions + 1], batch.targets)
    assert int(batch.mask.sum()) == int(padded.mask.sum())
    starts = (batch.mask * (batch.position_ids == 0)).sum()
    assert int(starts) == 24
    assert batch.ids.shape[1] <= 64
    assert batch.ids.numel() < 0.9 * padded.ids.numel()
    (whole,) = TokenLoader(items, 12, row_length=10**6)
    assert whole.ids.shape == (1, int(padded.mask.sum()))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(20, 50))
def test_first_fit_overlaps_nothing_and_leaves_no_two_rows_that_fit_in_one(sizes, length):
    places = first_fit(sizes, length)
    spans = sorted((row, column, column + size) for size, (row, column)
                   in zip(sizes, places, strict=True))  # fmt: skip
    for (row, _, end), (next_row, begin, _) in pairwise(spans):
        assert (row, end) == (next_row, begin) or (next_row, begin) == (row + 1, 0)
    ends = [max(end for row, _, end in spans if row == each) for each in range(1 + spans[-1][0])]
    assert max(ends) <= length
    assert all(one + other > length for one, other in pairwise(ends))


def test_batches_that_cannot_be_made_are_refused():
    with pytest.raises(DatasetError, match=r"record \d+ has \d+ tokens, and a row has 20"):
        TokenLoader(preferences(), 4, row_length=20)
    with pytest.raises(DatasetError, match="48 records do not make a step of 100"):
        TokenLoader(instructions(), 100, seed=0)
    with pytest.raises(DatasetError, match="48 records do not make a step of 52"):
        TokenLoader(instructions(), 4, seed=0, accumulate=13)
    with pytest.raises(DatasetError, match="prompt_length=0 of 3 tokens"):
        Tokens((1, 2, 3), 0)
    with pytest.raises(DatasetError, match="expected one number a response"):
        TokenLoader(preferences(), 4, reference=torch.zeros(48))
    with pytest.raises(OptionError, match="batch_size"):
        TokenLoader(preferences(), 0)


def test_references_are_kept_and_belong_to_their_model(tmp_path):
    model = TwoLevelModel(base())
    items = preferences()[:10]
    first = reference_log_probabilities(model, items, 4, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    with torch.no_grad():
        for each in (*model.lora.values(), model.weight):
            each += 0.1  # the levels are not the reference
    assert torch.equal(reference_log_probabilities(model, items, 3, cache=tmp_path), first)
    torch.testing.assert_close(reference_log_probabilities(model, items, 3), first)
    other = small_model(vocabulary=len(tokenizer()), hidden=16, layers=2, heads=2, seed=1)
    other = TwoLevelModel(other)
    assert not torch.equal(reference_log_probabilities(other, items, cache=tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 2
    for each in tmp_path.iterdir():
        each.write_bytes(b"damaged")
    with pytest.raises(DatasetError, match="delete it"):
        reference_log_probabilities(model, items, cache=tmp_path)


def test_references_are_those_of_the_precision(tmp_path):
    items = preferences()[:10]
    (batch,) = TokenLoader(items, 10)
    found = []
    for precision in (None, torch.bfloat16):
        model = TwoLevelModel(base(dtype=torch.float32), autocast=precision)
        reference = reference_log_probabilities(model, items, 10, cache=tmp_path)
        logs = token_log_probabilities(model.features(batch), model.weight, batch.targets)
        policy = sequence_log_probabilities(logs, batch.lengths).detach()
        torch.testing.assert_close(reference.T.reshape(-1), policy, rtol=1e-6, atol=1e-6)
        found.append(reference)
    assert float((found[0] - found[1]).abs().max()) > 1e-4
    assert len(list(tmp_path.iterdir())) == 2


def test_references_of_records_longer_than_the_context_are_refused():
    short = small_model(vocabulary=len(tokenizer()), hidden=16, layers=2, heads=2, context=20)
    with pytest.raises(
        DatasetError, match=r"record 1 has \d+ tokens, and the model's context is 20"
    ):
        reference_log_probabilities(TwoLevelModel(short), preferences()[:4])


def test_infinite_logits_name_the_sequence():
    model = TwoLevelModel(base())
    with torch.no_grad():
        model.weight[int(instructions()[3][0].ids[-2])] = float("nan")
    loaders = TokenLoader(preferences()[:2], 2), TokenLoader(instructions()[:4], 4)
    with pytest.raises(DatasetError, match=r"of sequence 0 of a batch .* NaN or infinite logits"):
        evaluate(model, *loaders)


# The embedded corpus and model ------------------------------------------------------------------


def test_the_library_corpus_keeps_its_parts_apart():
    corpus = library_corpus(60, 50, 30)
    again = library_corpus(60, 50, 30)
    assert corpus == again != library_corpus(60, 50, 30, seed=1)
    parts = (corpus.instructions, corpus.later_instructions, corpus.preferences,
             corpus.test_instructions, corpus.test_preferences)  # fmt: skip
    assert [len(part) for part in parts] == [60, 60, 50, 30, 30]
    prompts = [{record.prompt for record in part} for part in parts]
    assert sum(map(len, prompts)) == len(set.union(*prompts))
    text = "\n".join(corpus.texts)
    held_out = [*corpus.test_instructions, *corpus.instructions]
    assert sum(record.response in text for record in held_out) <= 2  # short ones may recur
    assert max(len(prompt) for part in prompts for prompt in part) < 200
    rejected = [record.rejected for record in (*corpus.preferences, *corpus.test_preferences)]
    summed = [record.chosen for record in (*corpus.preferences, *corpus.test_preferences)]
    summed += [record.response for record in held_out]
    assert len(set(rejected)) == len(rejected)
    assert not set(rejected) & set(summed)
    with pytest.raises(DatasetError, match="at most 90 % are drawn"):
        library_corpus(10**6, 10, 10)


def test_the_small_base_learns_and_is_read_again(tmp_path):
    texts = [each.response for each in INSTRUCTIONS] * 4
    losses = []
    model, words = small_base(
        tmp_path / "base", texts, steps=12, report=lambda step, loss: losses.append(loss)
    )
    assert losses[-1] < losses[0] - 1.0
    again, _ = small_base(tmp_path / "base", ["not used"], steps=1)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert words.decode(words("Return a file.")["input_ids"]) == "Return a file."
    with pytest.raises(OptionError, match="expected one of llama, gpt_neox"):
        small_model("mamba")
    with pytest.raises(OptionError, match="no multiple of heads"):
        small_model(hidden=30, heads=4)


def test_a_response_that_has_no_tokens_is_refused():
    class Deaf:
        eos_token_id = 0

        def __call__(self, text, **options):
            return {"input_ids": [5] if "Signature" in text else []}

    with pytest.raises(DatasetError, match=r"record 1: the response .* has no tokens"):
        tokenize(INSTRUCTIONS[:1], Deaf(), 8)
    assert Tokens((1, 2, 3), 1).response_length == 2


@pytest.mark.parametrize("template", ["no braces", "{}{}", "{prompt}"])
def test_a_template_without_its_one_place_is_refused(tmp_path, template):
    path = jsonl(tmp_path, {"prompt": "a", "response": "b"})
    with pytest.raises(DatasetError, match=r"a text with one \{\} for the prompt"):
        list(read_records(Instruction, path, template=template))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_text_of_another_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"prompt": "é", "response": "ü"}'.encode(encoding))
    with pytest.raises(DatasetError, match=r"rows.jsonl, row 1 is not UTF-8 text"):
        list(read_records(Instruction, path))


def test_a_character_cut_in_two_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "response": "b \\ud83d"}')
    with pytest.raises(DatasetError, match="row 1: response is not valid text"):
        list(read_records(Instruction, path))


def test_records_of_two_kinds_and_responses_cut_to_the_same_are_refused():
    with pytest.raises(DatasetError, match="record 2 is a Instruction, unlike those before"):
        tokenize([PREFERENCES[0], INSTRUCTIONS[0]], tokenizer(), 64)
    long = Preference("Say: ", "word " * 60 + "a", "word " * 60 + "b")
    with pytest.raises(DatasetError, match="the same within 20 tokens"):
        tokenize([long], tokenizer(), 20)


def test_pairs_that_are_alike_once_cut_are_refused_or_dropped():
    alike = Preference("Say it. ", "one two three four five", "one two three four six")
    other = Preference("Say it. ", "one two", "six seven")
    length = len(tokenizer()("Say it.")["input_ids"]) + 3
    with pytest.raises(DatasetError, match=r"the same within .* give drop_long=True"):
        tokenize([other, alike], tokenizer(), length)
    assert len(tokenize([other, alike], tokenizer(), length, drop_long=True)) == 1
