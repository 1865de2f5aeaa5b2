"""scripts/make_lab.py: a Llama as it is and in Qwen2's form, rows of problems, refusals."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlt_jax.models import load_model, read_config
from rlt_jax.models.rope import Llama3
from tests.scripts.loading import REPOSITORY, call_script, load_script

TINY = REPOSITORY / "rlt_jax" / "assets" / "tiny" / "teacher"
CONVERTED = [(("--as-qwen2",), "smollm2-qwen2", "qwen2")]
SIZES = {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 100_000.0, "rms_norm_eps": 1e-5}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("make_lab")


def llama_folder(folder: Path, **changes) -> Path:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"tie_word_embeddings": True} | changes)).to(torch.bfloat16)
    model.save_pretrained(folder)
    for file in TINY.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("flags", "name", "model_type"), [((), "smollm2", "llama"), *CONVERTED])
def test_a_llama_stays_the_same_function(flags, name, model_type, tied, script, tmp_path):
    source = llama_folder(tmp_path / "llama", tie_word_embeddings=tied)
    line = ("--model", source, "--out", tmp_path / "lab", "--only", "model", *flags)
    printed = call_script(script, *line)
    made = tmp_path / "lab" / name
    assert f"{made}: " in printed and [path.name for path in made.parent.iterdir()] == [name]
    config = json.loads((made / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == (model_type, "bfloat16")
    stored = load_file(made / "model.safetensors")
    assert any("bias" in tensor for tensor in stored) == (model_type == "qwen2")
    tokens = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(1))
    logits = [
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)(tokens).logits for place in (source, made)
    ]
    assert logits[0].std() > 0.1
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-6)
    model, params = load_model(made, dtype="float32")
    assert abs(model.logits(params, tokens.numpy()) - logits[0].detach().numpy()).max() < 1e-4
    assert (made / "tokenizer.json").read_text() == (source / "tokenizer.json").read_text()
    assert "already there" in call_script(script, *line)


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}


def test_a_scaled_llama_keeps_its_scaling(script, tmp_path):
    source = llama_folder(tmp_path / "llama", rope_scaling=LLAMA3, max_position_embeddings=256)
    call_script(script, "--model", source, "--out", tmp_path / "lab", "--only", "model")
    config = read_config(tmp_path / "lab" / "smollm2")
    assert config.rope_scaling == Llama3(4.0, 1.0, 4.0, 64) and config.rope_theta == 100_000


@pytest.mark.parametrize(
    ("flags", "changes", "message"),
    [
        (
            ("--as-qwen2",),
            {"attention_bias": True},
            "expected a Llama with attention_bias=False, as in Qwen2, got True",
        ),
        (("--as-qwen2",), {"mlp_bias": True}, "expected a Llama with mlp_bias=False, as in Qwen2, got True"),
        (
            ("--as-qwen2",),
            {"rope_scaling": LLAMA3},
            "expected a Llama with rope_type=default, as in Qwen2, got llama3",
        ),
        ((), {"mlp_bias": True}, "asks for what is not supported: mlp_bias=True (only false): use another model or"),
        (
            (),
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "asks for what is not supported: rope_parameters of type 'linear' (only default, yarn, llama3): use",
        ),
    ],
)
def test_what_cannot_be_written_is_refused(flags, changes, message, script, tmp_path):
    source = llama_folder(tmp_path / "llama", **changes)
    line = ("--model", source, "--out", tmp_path / "lab", "--only", "model", *flags)
    output = call_script(script, *line, expected=2)
    assert output.startswith(f"error: --model {source}") and message in output
    assert not list((tmp_path / "lab").iterdir())


@pytest.mark.parametrize("source", [TINY, REPOSITORY / "nowhere"])
def test_what_is_no_llama_is_refused(source, script, tmp_path):
    output = call_script(script, "--model", source, "--out", tmp_path / "lab", "--only", "model", expected=2)
    assert output.startswith(f"error: --model {source}: expected ")
    assert not list((tmp_path / "lab").iterdir())


GSM = {
    "question": "A pen costs 3 euros. What do 4 cost? Give the result as your final answer. Do not include units.",
    "answer": "12",
    "metadata": {"answer_cot": "One costs 3.\nFour cost 4 * 3 = 12.\n#### 12"},
}
LEGS = {
    "question": "Your task is to count legs.\n\nNow, how many legs are there in total if you have 2 dogs, 1 snail?\n",
    "answer": "8",
    "metadata": {"animals": {"dog": 2, "snail": 1}},
}


@pytest.fixture
def gym(monkeypatch) -> list[tuple]:
    """reasoning-gym with every problem twice; yields the calls that it gets."""
    calls: list[tuple] = []

    def create_dataset(task, *, size, seed, **settings):
        calls.append((task, size, seed, settings))
        for i in range(size):
            number = seed % 999_983 + i // 2
            if task == "gsm_symbolic":
                yield GSM | {"question": f"{number}: " + GSM["question"]}
            else:
                yield LEGS | {"question": LEGS["question"].replace("2 dogs", f"{number} dogs")}

    legs = SimpleNamespace(ANIMALS={"dog": 4, "snail": 0})
    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=create_dataset))
    monkeypatch.setitem(sys.modules, "reasoning_gym.arithmetic.leg_counting", legs)
    return calls


def test_rows_of_problems(gym, script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "NUM_ROWS", {"eval": 20, "train": 30})
    monkeypatch.setattr(script, "FIRST_SEED", {"eval": 1010, "train": 1000})  # ten problems are in both draws
    call_script(script, "--out", tmp_path, "--only", "data")
    assert gym == [
        ("gsm_symbolic", 140, 1010, {}),
        ("gsm_symbolic", 160, 1000, {}),
        ("leg_counting", 140, 1010, {"min_animals": 2, "max_animals": 5}),
        ("leg_counting", 160, 1000, {"min_animals": 2, "max_animals": 5}),
    ]
    rows = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "data").iterdir()
    }
    assert {name: len(lines) for name, lines in rows.items()} == {
        "gsm_symbolic_eval": 20,
        "gsm_symbolic_train": 30,
        "leg_counting_eval": 20,
        "leg_counting_train": 30,
    }
    for task in ("gsm_symbolic", "leg_counting"):
        assert len({row["question"] for row in rows[f"{task}_eval"] + rows[f"{task}_train"]}) == 50
    assert rows["gsm_symbolic_eval"][0] == {
        "question": "1010: A pen costs 3 euros. What do 4 cost?",
        "solution": "Four cost 4 * 3 = 12.\n\nThe final answer is 12.",
        "reasoning_trace": "One costs 3.\nFour cost 4 * 3 = 12.",
    }
    assert rows["leg_counting_eval"][0] == {
        "question": "How many legs are there in total if you have 1010 dogs, 1 snail?",
        "solution": "Together they have 8 + 0 = 8 legs.\n\nThe final answer is 8.",
        "reasoning_trace": "Each dog has 4 legs, so 2 of them have 2 * 4 = 8 legs.\n"
        "Each snail has 0 legs, so 1 of them have 1 * 0 = 0 legs.\nTogether they have 8 + 0 = 8 legs.",
    }
    assert call_script(script, "--out", tmp_path, "--only", "data").count("already there") == 2


def test_what_is_missing_is_said(script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    output = call_script(script, "--out", tmp_path / "lab", "--only", "data", expected=2)
    assert output == "error: reasoning_gym is not installed: pip install -e '.[lab]'\n"
    assert not (tmp_path / "lab").exists()
