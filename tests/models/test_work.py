"""Tokens and FLOPs of passes: by hand, by PyTorch's own count, by the mask that attention uses, as properties."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from rlt_jax.models import UPDATE_PASSES, ModelConfig, Work, forward_flops, read_config, work_of
from rlt_jax.models.attention import segment_bias
from rlt_jax.segments import MicroBatch, Tree, micro_batches

SMALL = ModelConfig(
    model_type="qwen2",
    vocab_size=100,
    hidden_size=8,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=5,
)


def test_flops_by_hand():
    """A layer multiplies 8 · (20 + 10 + 10 + 20) + 3 · 8 · 20 = 960 parameters; the head 800."""
    assert forward_flops(SMALL, tokens=1, logits=0, pairs=0) == 2 * 3 * 960
    assert forward_flops(SMALL, tokens=0, logits=1, pairs=0) == 2 * 800
    assert forward_flops(SMALL, tokens=0, logits=0, pairs=0.5) == 2 * 3 * 20  # scores and values, 4 heads of 5
    assert forward_flops(SMALL, tokens=7, logits=2, pairs=24.5) == 7 * 5760 + 2 * 1600 + 24.5 * 240


def test_two_completions_of_a_prompt_by_hand():
    """A prompt of 10 tokens with completions of 4 and 6, in a sequence of 32, and a row of 5 alone in another."""
    batch = MicroBatch([[Tree([0, 2], 10, 20)], [Tree([1], 0, 5)]], 2, 32, "masked")
    lengths, wanted = [14, 5, 16], [np.arange(9, 14), np.arange(1, 5), np.arange(9, 16)]
    work = work_of(SMALL, [batch], lengths, wanted)
    assert (work.real, work.computed, work.shared, work.padding) == (35, 64, 10, 39)
    pairs = 100 / 2 + (4 * 10 + 16 / 2) + (6 * 10 + 36 / 2) + 25 / 2
    assert work.flops == 25 * 5760 + (1 + 4 + 6 + 4) * 1600 + pairs * 240  # position 9 is asked for twice
    assert work.unshared_flops == 35 * 5760 + 16 * 1600 + (14**2 + 5**2 + 16**2) / 2 * 240
    assert work.full_flops == 35 * 5760 + 35 * 1600 + (14**2 + 5**2 + 16**2) * 240
    update = work_of(SMALL, [batch], lengths, wanted, passes=UPDATE_PASSES)
    assert update == Work(35, 64, 10, 3 * work.flops, 3 * work.unshared_flops, 3 * work.full_flops)
    assert work + update == Work(70, 128, 20, 4 * work.flops, 4 * work.unshared_flops, 4 * work.full_flops)


@pytest.mark.parametrize("tied", [True, False])
def test_full_flops_are_those_that_pytorch_counts(golden, tmp_path, tied):
    """Its counter sees the products that are run: with attention over all T² pairs, and logits of all tokens."""
    file = json.loads((golden / "student" / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(file))
    config = read_config(tmp_path)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), attn_implementation="eager")
    length = 11
    (batch,) = micro_batches([np.arange(length)], tokens=64, arrangement="rows")
    with FlopCounterMode(display=False) as forward:
        logits = model(torch.arange(length)[None]).logits
    with FlopCounterMode(display=False) as backward:
        logits.square().sum().backward()
    ours = work_of(config, [batch], [length], [np.arange(1, length)]).full_flops
    assert forward.get_total_flops() == ours
    assert backward.get_total_flops() == 2 * ours


@st.composite
def laid_out(draw):
    """Rows of a few prompts with completions, some equal, and how they lie."""
    prompts = [np.arange(size, dtype=np.int32) + 100 * i for i, size in enumerate(draw(st.lists(st.integers(1, 40))))]
    sizes = st.lists(st.integers(0, 20), min_size=1, max_size=4)
    rows = []
    for prompt in prompts[:3] or [np.arange(5, dtype=np.int32)]:
        for i, size in enumerate(draw(sizes)):
            own = draw(st.sampled_from([0, i]))
            rows.append(np.concatenate([prompt, 1000 + 50 * own + np.arange(size, dtype=np.int32)]))
    arrangement = draw(st.sampled_from(["flat", "masked", "rows"]))
    packed = draw(st.sampled_from([None, 128])) if arrangement == "masked" else None
    batches = micro_batches(rows, tokens=draw(st.integers(1, 400)), arrangement=arrangement, packed_length=packed)
    return rows, batches


@settings(deadline=None)
@given(laid_out())
def test_counts_are_those_of_the_layout(case):
    """Tokens, and the pairs that causal attention under the layout's mask looks at, diagonal and all."""
    rows, batches = case
    lengths = [len(row) for row in rows]
    wanted = [np.arange(1, length) for length in lengths]
    work = work_of(SMALL, batches, lengths, wanted)
    assert work.real == sum(lengths) and work.computed == sum(batch.ids(rows).size for batch in batches)
    assert work.real - work.shared + work.padding == work.computed and min(work.shared, work.padding) >= 0
    taken, pairs, logits = 0, 0, 0
    for batch in batches:
        places = batch.places(lengths)
        used = np.zeros(batch.computed, bool)
        used[np.concatenate(list(places.values()))] = True
        taken += int(used.sum())
        logits += len(np.unique(np.concatenate([places[i][wanted[i]] for i in places])))
        layout = batch.layout(lengths)
        causal = np.tril(np.ones((batch.num_sequences, batch.length, batch.length), bool))
        seen = causal if layout is None else causal & (np.asarray(segment_bias(layout, np.dtype("float32")))[:, 0] == 0)
        seen &= used.reshape(batch.num_sequences, -1, 1) & used.reshape(batch.num_sequences, 1, -1)
        pairs += int(seen.sum())
    assert taken == work.real - work.shared
    assert work.flops == forward_flops(SMALL, tokens=taken, logits=logits, pairs=pairs - taken / 2)
    assert work.flops <= work.unshared_flops <= work.full_flops
    assert (work.flops == work.unshared_flops) == (work.shared == 0)


def test_no_rows_are_no_work():
    assert work_of(SMALL, [], [], []) == Work() == Work() + Work()
