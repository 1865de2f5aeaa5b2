"""Tokenizers are read as their files say; teacher and student must share ids."""

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rlt_jax.data import (
    check_same_tokenizer,
    encode,
    encode_batch,
    encode_with_offsets,
    eos_ids,
    ids_to_bytes,
    known_ids,
    load_tokenizer,
)
from rlt_jax.data.tokenizer import end_texts
from rlt_jax.data.turns import turns_of
from rlt_jax.errors import UserError


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of the golden teacher's small files, free to change."""
    copy = tmp_path / "model"
    shutil.copytree(golden / "teacher", copy, ignore=shutil.ignore_patterns("*.safetensors"))
    return copy


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_the_files_own_splitting_is_kept(folder):
    """AutoTokenizer splits such a folder's text as Qwen2 does, whatever tokenizer.json says (the module's header)."""
    from transformers import AutoTokenizer

    text = "So 12345.\n\nIt"
    before = load_tokenizer(folder)
    assert ids_to_bytes(before, encode(before, text))[-3:] == [b".\n\n", b"I", b"t"]
    gpt2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    change(folder / "tokenizer.json", pre_tokenizer=gpt2)
    after = load_tokenizer(folder)
    assert ids_to_bytes(after, encode(after, text))[-5:] == [b".", b"\n", b"\n", b"I", b"t"]
    auto = AutoTokenizer.from_pretrained(folder)
    assert auto(text)["input_ids"] == encode(before, text).tolist() != encode(after, text).tolist()


def test_special_tokens_and_chat_template_are_read(folder):
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (999, 997)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    assert load_tokenizer(folder).chat_template == tokenizer.chat_template == template


def test_a_folder_with_vocab_and_merges_only(folder):
    (folder / "tokenizer.json").unlink()
    assert encode(load_tokenizer(folder), "So 12\n\n<|im_end|>").tolist()[-1] == 999


def test_missing_and_broken_tokenizers(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected tokenizer.json .* in .*empty, but there is none"):
        load_tokenizer(tmp_path / "empty")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="expected a readable tokenizer in"):
        load_tokenizer(folder)
    with pytest.raises(UserError, match="there is no nobody/no-such-model here and HF_HUB_OFFLINE"):
        load_tokenizer("nobody/no-such-model")
    with pytest.raises(UserError, match="missing does not exist: check the path"):
        load_tokenizer(tmp_path / "missing")


MARKING = """
import pathlib
pathlib.Path(__file__).with_name("marker").touch()
from transformers import PreTrainedTokenizerFast as Own, Qwen2Config as OwnConfig
"""


def with_own_code(folder: Path, **config) -> None:
    """Let the folder name code of its own, which makes a file when it is run."""
    (folder / "own.py").write_text(MARKING)
    for name, auto_map in (
        ("config.json", {"AutoConfig": "own.OwnConfig", "AutoTokenizer": ["own.Own", "own.Own"]}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", "own.Own"]}),
    ):
        values = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(values | {"auto_map": auto_map} | config))


def test_code_that_comes_with_a_tokenizer_is_never_run(folder, monkeypatch, tmp_path):
    """Where it is needed, that is said; transformers would ask on the standard input and run it on `y`."""
    expected = encode(load_tokenizer(folder), "So 12\n\n<|im_end|>")
    monkeypatch.setattr("builtins.input", lambda *text: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    with_own_code(folder, tokenizer_class="Own")
    assert encode(load_tokenizer(folder), "So 12\n\n<|im_end|>").tolist() == expected.tolist()  # it has tokenizer.json
    (folder / "tokenizer.json").unlink()
    with pytest.raises(
        UserError, match=r"its auto_map names code \(.*own.Own.*\), and code that comes with a model is"
    ):
        load_tokenizer(folder)
    with_own_code(folder, tokenizer_class="Qwen2Tokenizer")  # which reads vocab.json itself
    assert encode(load_tokenizer(folder), "So 12\n\n<|im_end|>").tolist()[-1] == 999
    assert not (folder / "marker").exists() and not (tmp_path / "modules").exists()


def test_every_loader_that_could_run_code_is_told_not_to():
    """In the package and in its scripts."""
    root = Path(__file__).parents[2]
    calls = 0
    for file in [file for part in ("rlt_jax", "scripts", "benchmarks") for file in (root / part).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            if (name := ast.unparse(node.func)).endswith(("tokenizer_class.from_pretrained", "vllm.LLM")) or (
                name.startswith("Auto") and name.endswith(".from_pretrained")
            ):
                calls += 1
                told = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert told.get("trust_remote_code") == "False", f"{file}: {name}"
    assert calls >= 7


def test_a_folder_is_read_by_its_own_splitting_without_advice_to_replace_it(folder, capfd):
    """transformers takes a folder without a model_type for an early Mistral model's."""
    expected = encode(load_tokenizer(folder), "So 12 It's")
    (folder / "config.json").write_text("{}")
    capfd.readouterr()
    assert encode(load_tokenizer(folder), "So 12 It's").tolist() == expected.tolist()
    assert "regex" not in "".join(capfd.readouterr())


def test_eos_ids_join_tokenizer_and_generation_config(folder):
    tokenizer = load_tokenizer(folder)
    assert eos_ids(tokenizer, folder) == (999,)
    change(folder / "generation_config.json", eos_token_id=[999, 997])
    assert eos_ids(tokenizer, folder) == (999, 997)
    change(folder / "generation_config.json", eos_token_id=None)
    assert eos_ids(tokenizer, folder) == (999,)
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(UserError, match="expected a JSON object with eos_token_id"):
        eos_ids(tokenizer, folder)
    (folder / "generation_config.json").unlink()
    tokenizer.eos_token = None
    assert eos_ids(tokenizer, folder) == (999,)  # the chat template's
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="expected an end-of-text token"):
        eos_ids(tokenizer, folder)


def test_the_token_that_ends_a_turn_ends_a_completion(folder):
    """As with base models, whose EOS is `<|endoftext|>` while their chat ends turns with another token."""
    change(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    (folder / "special_tokens_map.json").unlink()
    change(folder / "generation_config.json", eos_token_id=997)
    tokenizer = load_tokenizer(folder)
    assert eos_ids(tokenizer, folder) == (997, 999)
    assert end_texts(tokenizer) == ("<|endoftext|>", "<|im_end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    turns_of.cache_clear()
    assert eos_ids(tokenizer, folder) == (997,) and end_texts(tokenizer) == ("<|endoftext|>",)


def changed_file(folder, change_table):
    """The tokenizer of a folder after a change of its tokenizer.json."""
    table = json.loads((folder / "tokenizer.json").read_text())
    change_table(table)
    (folder / "tokenizer.json").write_text(json.dumps(table))
    return load_tokenizer(folder)


def test_tokens_that_only_the_student_has_are_fine(golden):
    teacher, student = load_tokenizer(golden / "teacher"), load_tokenizer(golden / "student")
    check_same_tokenizer(teacher, student)
    student.add_tokens(["<extra>"])
    check_same_tokenizer(teacher, student)
    with pytest.raises(UserError, match="the student lacks 1 of the teacher's 1001 tokens: 1000 '<extra>': choose"):
        check_same_tokenizer(student, teacher)
    student.add_tokens([f"<{i}>" for i in range(6)])
    with pytest.raises(
        UserError, match=r"lacks 7 of the teacher's 1007 tokens: 1000 '<extra>', 1001 '<0>', .*, \.\.\.:"
    ):
        check_same_tokenizer(student, teacher)


def swap_two(table):
    vocab = table["model"]["vocab"]
    first, second = (next(t for t, i in vocab.items() if i == n) for n in (700, 900))
    vocab[first], vocab[second] = 900, 700


def other_merges(table):
    merges = table["model"]["merges"]
    merges[5], merges[6] = merges[6], merges[5]


DIFFERENCES = {
    "two ids": (swap_two, "2 of 1000 token ids differ, first id 700:"),
    "merges": (other_merges, "their merges differ, first merge 5:"),
    "fewer merges": (
        lambda table: table["model"]["merges"].pop(),
        r"their merges differ, first merge \d+: .*None \(st",
    ),
    "splitting": (
        lambda table: table.update(
            pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        ),
        "the pre_tokenizer of their tokenizer.json differs",
    ),
    "normalisation": (lambda table: table.update(normalizer={"type": "NFKC"}), "the normalizer of their"),
    "whole words": (lambda table: table["model"].update(ignore_merges=True), "ignore_merges of the model in their"),
}


@pytest.mark.parametrize(("difference", "message"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_a_student_that_reads_ids_otherwise_is_refused(golden, folder, difference, message):
    with pytest.raises(UserError, match=message) as refusal:
        check_same_tokenizer(load_tokenizer(golden / "teacher"), changed_file(folder, difference))
    assert str(refusal.value).endswith("with --reward.student-tokens text")


def test_bytes_of_tokens(tokenizer):
    text = "Zoë — ✓ 🙂\n\n\t<|im_end|>ok\x00"
    ids = encode(tokenizer, text)
    assert b"".join(ids_to_bytes(tokenizer, ids)) == text.encode()
    assert ids_to_bytes(tokenizer, [999, 5000]) == [b"<|im_end|>", b""]
    single = sorted(ids_to_bytes(tokenizer, range(256)))
    assert single == sorted(bytes([b]) for b in range(256))


def test_vocabulary_that_is_not_byte_level(golden, folder):
    table = json.loads((folder / "tokenizer.json").read_text())
    vocab = {("▁the" if i == 500 else token): i for token, i in table["model"]["vocab"].items()}
    merges = [pair for pair in table["model"]["merges"] if all("".join(p) in vocab for p in (pair, *pair))]
    table["model"] |= {"vocab": vocab, "merges": merges[:50]}
    (folder / "tokenizer.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"expected a byte-level BPE tokenizer .* token 500 is '▁the'"):
        ids_to_bytes(load_tokenizer(folder), [1])


def test_encoding_shapes(tokenizer):
    ids, offsets = encode_with_offsets(tokenizer, "a 🙂")
    assert ids.dtype == np.int32 and offsets.shape == (len(ids), 2)
    assert offsets[-1].tolist() == [2, 3] and ids.tolist() == encode(tokenizer, "a 🙂").tolist()
    assert encode(tokenizer, "").shape == (0,) and encode_with_offsets(tokenizer, "")[1].shape == (0, 2)
    assert encode_batch(tokenizer, []) == []


def test_known_ids_are_those_with_a_token(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["<far>"] = 1050  # leaves a gap
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    after = load_tokenizer(folder)
    tokens = after.convert_ids_to_tokens(list(range(1100)))
    assert tokens.index("<far>") == 1050 and "<|im_end|>" in tokens
    assert known_ids(after).dtype == np.int32
    assert known_ids(after).tolist() == [i for i, token in enumerate(tokens) if token is not None]
    assert len(known_ids(after)) == 1001


def test_known_ids_of_the_golden_tokenizer_are_its_vocabulary(golden):
    assert known_ids(load_tokenizer(golden / "teacher")).tolist() == list(range(1000))
