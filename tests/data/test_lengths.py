"""Bounds of lengths against real tokenizers, and which tokenizers they are not used for."""

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import rlt_jax
from rlt_jax.data import TokenCounter, counter_of, encode, load_tokenizer
from rlt_jax.data.encoding import encode_with_offsets
from rlt_jax.data.lengths import UNKNOWN, Length, batches
from tests.data.templates import SHAPES, shaped_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "teacher"
TINY = Path(rlt_jax.__file__).parent / "assets" / "tiny" / "teacher"
CORPUS = ["What is 12 + 30? The answer is forty-two.", "Żółw 漢字 e\u0301", "    four blanks\n\n and more    "]
SEEDS = [
    *CORPUS,
    "<|im_end|>",
    "<|im_start|>user\n",
    "<think>",
    "<|end",
    "<｜User｜>",
    "\u0958",
    "\u0338",
    "é",
    "\U0001d15e",
]
TEXTS = st.lists(st.one_of(st.sampled_from(SEEDS), st.text(max_size=8)), max_size=8).map("".join)


def trained(model, trainer, pre_tokenizer, normalizer=None, added=()):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_level(normalizer=None, added=(), *, prefix=False, steps=(), alphabet=None):
    alphabet = pre_tokenizers.ByteLevel.alphabet() if alphabet is None else alphabet
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|im_end|>"])
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not steps)
    return trained(models.BPE(), trainer, pre_tokenizers.Sequence([*steps, last]), normalizer, added)


BOUNDED = {
    "tiny": lambda: load_tokenizer(TINY),
    "golden": lambda: load_tokenizer(GOLDEN),
    "qwen3": lambda: shaped_tokenizer(SHAPES["qwen3"], GOLDEN),
    "r1-distill": lambda: shaped_tokenizer(SHAPES["r1-distill"], GOLDEN),
    "plain": byte_level,
    "digits": lambda: byte_level(steps=[pre_tokenizers.Digits(individual_digits=True)]),
    "splits": lambda: byte_level(steps=[pre_tokenizers.Split(" ", "merged_with_next")]),
    "decomposing": lambda: byte_level(normalizers.NFKD()),
    "lower case": lambda: byte_level(normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
    "growing": lambda: byte_level(normalizers.Replace("a", "aaaa")),
    "overlapping tokens": lambda: byte_level(
        normalizers.NFC(), [AddedToken(text, normalized=False) for text in ("<|", "<|im", "|><", "ab", "abab")]
    ),
    "normalised tokens": lambda: byte_level(
        normalizers.Lowercase(), [AddedToken("FORTY", normalized=True), AddedToken("30", normalized=False)]
    ),
}
UNBOUNDED = {
    "blanks before": lambda: byte_level(prefix=True),
    "a token that takes blanks": lambda: byte_level(added=[AddedToken("is", lstrip=True, normalized=False)]),
    "whole words only": lambda: byte_level(added=[AddedToken("is", single_word=True, normalized=False)]),
    "dropped text": lambda: byte_level(steps=[pre_tokenizers.Split(" ", "removed")]),
    "bytes without a token": lambda: byte_level(alphabet=[]),
    "unigram": lambda: trained(
        models.Unigram(), trainers.UnigramTrainer(vocab_size=90, unk_token="?"), pre_tokenizers.Metaspace()
    ),
    "word pieces": lambda: trained(
        models.WordPiece(unk_token="[UNK]"),
        trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]"]),
        pre_tokenizers.Whitespace(),
    ),
    "whole words": lambda: trained(
        models.WordLevel(unk_token="[UNK]"),
        trainers.WordLevelTrainer(special_tokens=["[UNK]"]),
        pre_tokenizers.Whitespace(),
    ),
}
MADE = {name: make() for name, make in (BOUNDED | UNBOUNDED).items()}


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_counts_are_those_of_the_tokenizer_and_inside_the_bounds(name, texts):
    tokenizer = MADE[name]
    expected = [len(encode(tokenizer, text)) for text in texts]
    for counter in (TokenCounter(tokenizer), counter_of(tokenizer)):  # one that knows nothing, one that remembers
        before = [counter.bounds(text) for text in texts]
        assert counter.counts(texts) == expected
        for count, *found in zip(expected, before, map(counter.bounds, texts)):
            for low, high in found:
                assert low <= count <= high
    assert counter.counts(texts) == expected


@pytest.mark.parametrize("name", MADE)
def test_only_tokenizers_that_keep_every_byte_have_bounds(name):
    low, high = TokenCounter(MADE[name]).bounds("What is 12 + 30?" * 100)
    assert (low > 0 and high < UNKNOWN) == (name in BOUNDED), f"{low} to {high}"


def test_what_rows_share_is_counted_once():
    """The system prompt is known from the first text on; the next needs its own bytes only."""
    counter = TokenCounter(MADE["tiny"])
    system = "<|im_start|>" + "a long system prompt " * 20 + "<|im_end|>"
    assert counter.lengths([(system + "one",)], [100]) == [Length.exact(counter.counts([system + "one"])[0])]
    known = counter.counts([system])[0]
    assert counter.bounds(system + "seven") == Length(known + 1, known + 5)


def test_lengths_are_exact_but_for_texts_that_surely_fit_and_long_ones_that_surely_do_not():
    counter, text = TokenCounter(MADE["tiny"]), "What is 83-57+31?"
    count = counter.counts([text])[0]
    low, high = TokenCounter(MADE["tiny"]).bounds(text)
    assert low < count < high == len(text)
    for limit in (low - 1, low, count, high - 1, high):
        (found,) = TokenCounter(MADE["tiny"]).lengths([(text,)], [limit])
        assert found == (Length.exact(count) if limit < high else Length(low, high)), limit
    long = "What is 83-57+31? " * 5000  # counted only where its bounds leave open what it exceeds
    low, high = TokenCounter(MADE["tiny"]).bounds(long)
    for limit in (low - 1, low, high - 1, high):
        (found,) = TokenCounter(MADE["tiny"]).lengths([(long,)], [limit])
        assert (found == (low, high)) == (limit in (low - 1, high)) and low <= found.low <= found.high <= high
    (both,) = TokenCounter(MADE["tiny"]).lengths([(text, text)], [2 * count])
    assert both == Length.exact(2 * count) and str(both) == str(2 * count)
    assert str(Length(3, 9)) == "at least 3" and str(Length(3, 9).cut(3)) == "3"


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=40, deadline=None)
@given(
    text=TEXTS,
    filler=st.sampled_from(["12 ", "forty", "\n\n", "a"]),
    times=st.integers(1, 60),
    ends=st.tuples(TEXTS, TEXTS),
)
def test_a_text_that_surely_has_a_token_of_its_own_has_one_wherever_it_stands(name, text, filler, times, ends):
    long = text + filler * times + text
    if TokenCounter(MADE[name]).has_own_token(long):
        before, after = ends
        _, offsets = encode_with_offsets(MADE[name], before + long + after)
        begin, end = len(before), len(before) + len(long)
        assert ((offsets[:, 0] >= begin) & (offsets[:, 1] <= end) & (offsets[:, 0] < offsets[:, 1])).any()


def test_a_text_that_two_tokens_of_tags_can_cover_is_not_sure_of_one():
    """`>aaaaaa<` in the tokens `>aaa` and `aaa<`: six characters, and none of them in a token of their own."""
    merges = [(">", "a"), (">a", "a"), (">aa", "a"), ("a", "<"), ("a", "a<"), ("a", "aa<")]
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert tokenizer.tokenize(">aaaaaa<") == [">aaa", "aaa<"]
    sure = [n for n in range(1, 20) if TokenCounter(tokenizer).has_own_token("a" * n)]
    assert sure == list(range(9, 20))  # from 7 on there is one: the bound is safe, not tight


def test_long_texts_surely_have_a_token_of_their_own_and_short_ones_may_not():
    counter = TokenCounter(MADE["golden"])
    assert counter.has_own_token("12 + 30 is 42. " * 100) and counter.has_own_token("字" + "12 + 30 is 42. " * 100)
    assert not counter.has_own_token("42") and not counter.has_own_token("漢字" * 1000)
    assert not any(TokenCounter(MADE[name]).has_own_token("12 + 30 " * 100) for name in UNBOUNDED)


@pytest.mark.parametrize("text", ["1+" * 5_000_000, "<|<|im_end|>" * 800_000, "漢字 " * 1_500_000], ids=["a", "b", "c"])
def test_ten_megabytes_are_bounded_at_once(text):
    counter = counter_of(MADE["golden"])
    before = time.process_time()
    (found,) = counter.lengths([(text,)], [6144])
    assert found.low > 6144 and time.process_time() - before < 2


def test_truncation_and_padding_of_the_tokenizers_file_do_not_count():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert TokenCounter(tokenizer).counts(["forty-two and 12"]) == [len(encode(byte_level(), "forty-two and 12"))]


def test_texts_are_tokenised_in_parts_of_a_bounded_size():
    assert list(batches(["aa", "bb", "ccccc", "d", ""], 4)) == [["aa", "bb"], ["ccccc"], ["d", ""]]
    assert list(batches([], 4)) == []
