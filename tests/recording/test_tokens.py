"""Texts of tokens, and secrets in them."""

import os

import pytest
import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from training import make, settings
from transformers import PreTrainedTokenizerFast

from a2tgpo_trl import A2TGPOConfig
from a2tgpo_trl.recording import Masks, TokenTexts
from a2tgpo_trl.rollout.record_files import read_records


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.make_tokenizer()


def in_words() -> PreTrainedTokenizerFast:
    """A tokenizer whose words begin with their space; its decoder removes the first one."""
    words = ["<unk>", "\u2581a", "\u2581the", "\u2581cat", "s"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("text", ["capital of France", "a é ü", "日本語 🎉🎉", "<|im_end|>\n{}", "\ufffd!", "é"])
def test_token_texts_join_to_the_original_text(text, tokenizer):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = TokenTexts(tokenizer)(ids)
    assert len(texts) == len(ids) and "".join(texts) == text == tokenizer.decode(ids)


def test_a_character_of_several_tokens_is_with_the_last_of_them(tokenizer):
    ids = tokenizer("é!", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3  # two bytes of the first
    assert TokenTexts(tokenizer)(ids) == ["", "é", "!"]
    half = TokenTexts(tokenizer)(ids[:1])  # where the text was cut
    assert half == ["\ufffd"] and TokenTexts(tokenizer)([]) == []


def test_words_keep_their_spaces():
    tokenizer = in_words()
    assert tokenizer.decode([2]) == "the"  # its space is gone
    assert TokenTexts(tokenizer)([2, 3, 4]) == [" the", " cat", "s"]


def test_tokens_of_a_secret_are_masked_and_others_stay():
    masked = Masks({"API_KEY": "abcdefgh12"})
    ids, texts = masked.of_tokens([5, 6, 7, 8], ["is", " abcd", "efgh12", "!"])
    assert ids == [5, None, None, 8] and texts == ["is", "<API_KEY>", "", "!"]
    twice = masked.of_tokens([5, 6], ["abcdefgh12", "abcdefgh12"])
    assert twice == ([None, None], ["<API_KEY>", "<API_KEY>"])
    assert Masks({}).of_tokens([5], ["abcdefgh12"]) == ([5], ["abcdefgh12"])


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_secret_that_is_read_or_written_is_in_no_file(format, tokenizer, tmp_path, monkeypatch):
    # One is in the questions; the test's policy writes the other into a call.
    monkeypatch.setitem(os.environ, "SOME_SECRET", "the capital of")
    monkeypatch.setitem(os.environ, "OTHER_KEY", "capital 0 0")
    args = A2TGPOConfig(**settings(tmp_path, record_every=1, record_format=format, max_steps=1))
    make(tokenizer, args).train()
    (file,) = (tmp_path / "rollouts").glob("*")
    records = read_records(file)
    ids = [[one for one in [*r["prompt_ids"], *r["tokens"]["ids"]] if one is not None] for r in records]
    text = "".join(map(str, records)) + "".join(map(tokenizer.decode, ids))
    assert "<SOME_SECRET>" in text and "the capital of" not in text
    assert "<OTHER_KEY>" in text and "capital 0 0" not in text
    assert any(None in record["prompt_ids"] for record in records)
    assert any(None in record["tokens"]["ids"] for record in records)
    assert all(len(one["tokens"]["ids"]) == len(one["tokens"]["sampled"]) for one in records)
