"""Commands on model folders that hold more than one set of weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

QUESTIONS = {"83-57+31": "57", "87-76+77": "88", "72-46+13": "39", "11+26-18": "19"}


@pytest.mark.slow
def test_evaluate_takes_the_trained_file_beside_older_shards(tiny, tmp_path):
    """As transformers does; the shards of the older index are untrained."""
    student = Path(shutil.copytree(tiny / "student", tmp_path / "student"))
    trained = load_file(student / "model.safetensors")
    rng = np.random.default_rng(0)
    weight_map = {}
    for number, names in enumerate(np.array_split(sorted(trained), 2), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        untrained = {name: rng.normal(0, 0.02, trained[name].shape).astype(trained[name].dtype) for name in names}
        save_file(untrained, student / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(map(str, names), file)
    (student / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    system = "Think about the steps, then give the result."
    rows = [{"question": f"What is {sum_}?", "answer": answer, "system": system} for sum_, answer in QUESTIONS.items()]
    data, out = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    flags = ["--model", student, "--data.path", data, "--out", out, "--dtype", "float32"]
    flags += ["--temperature", 0, "--max-completion-length", 64]
    line = [sys.executable, "-m", "rlt_jax.evaluate", *map(str, flags)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.with_suffix(".summary.json").read_text())["accuracy"]["value"] == 1
    ignored = "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, model.safetensors.index.json"
    assert f"loading model.safetensors, as transformers does, and ignoring {ignored}" in done.stderr
