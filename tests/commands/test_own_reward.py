"""`--reward.fn`: a reward function by name through the command line of every command that rewards."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from rlt_jax import ablate as ablate_command
from rlt_jax import generate as generate_command
from rlt_jax import pipeline as pipeline_command
from rlt_jax import plan as plan_command
from rlt_jax import replay as replay_command
from rlt_jax import score as score_command
from rlt_jax import train as train_command
from rlt_jax.configs import load_config
from rlt_jax.rewards import by_name
from rlt_jax.studies import ablation, pipeline
from rlt_jax.studies.study_file import study_path

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "rewards" / "short_and_helpful.py"
TEXTS = """
import numpy as np
from rlt_jax import Rewards, reads

@reads()
def words(inputs, *, word: str = "First", weight: float = 1.0):
    told = [prompt.row.question in prompt.teacher_text for prompt in inputs.prompts]
    found = np.array([float(word in row.explanation) for row in inputs.rows])
    return Rewards(weight * found + len(told), {"found": found})

def broken(inputs, *, at: int = 0):
    return np.full(len(inputs.rows), np.nan) if at else inputs.rows[0].nothing
"""


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "texts.py"
    path.write_text(TEXTS)
    return path


@pytest.fixture
def rows(tiny, tmp_path) -> Path:
    """Six rows with an explanation of their own."""
    path = tmp_path / "rows.jsonl"
    read = [json.loads(line) for line in (tiny / "eval.jsonl").read_text().splitlines()[:6]]
    path.write_text("".join(json.dumps(row | {"explanation": row["reasoning_trace"]}) + "\n" for row in read))
    return path


@pytest.fixture
def score_flags(tiny, rows, tmp_path) -> tuple:
    models = ("--teacher", tiny / "teacher", "--student", tiny / "student")
    return (
        *models,
        "--data",
        rows,
        "--teacher-prompt-file",
        tiny / "teacher_prompt.txt",
        "--out",
        tmp_path / "s.jsonl",
    )


@pytest.mark.parametrize("name", ["short_and_helpful", "likely_and_honest"])
def test_the_guide_shows_the_examples(name):
    """Word for word, but for docstrings."""
    lines = (EXAMPLE.parent / f"{name}.py").read_text().splitlines()
    code = lines[lines.index('"""', 1) + 2 :]
    shown = [line for line in code if not line.startswith('    """')]
    guide = (EXAMPLE.parents[2] / "docs" / "guide.md").read_text()
    assert "```python\n" + "\n".join(shown) + "\n```\n" in guide


def test_score_with_the_example(main, score_flags, tmp_path, capsys):
    """It adds its price to the paper's reward with the run's own settings."""
    paper = ("--reward.kl-penalty-reward-coeff", 1)
    main(score_command, *score_flags, *paper)
    usual = lines(tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").unlink()
    options = tmp_path / "options.yaml"
    options.write_text("free: 10\n")
    main(
        score_command, *score_flags, *paper, "--reward.fn", f"{EXAMPLE}:short_and_helpful", "--reward.options", options
    )
    for before, now in zip(usual, lines(tmp_path / "s.jsonl"), strict=True):
        penalty = -0.01 * (before["thought_tokens"] - 10)
        assert now["components"].pop("length_penalty") == pytest.approx(penalty) and penalty < -0.01
        assert now["components"] == before["components"]
        assert now["reward"] == pytest.approx(before["reward"] + penalty, abs=1e-6)
    said = capsys.readouterr().out
    assert (
        f"the reward is your function {EXAMPLE}:short_and_helpful, options {{free: 10}} (SHA-256 of its file " in said
    )


def test_the_terms_of_flags_are_those_of_a_function(main, score_flags, tmp_path):
    """The second example says in Python what the flags of its two terms say."""
    paper = ("--reward.answer-log-prob-coeff", 0, "--reward.kl-penalty-reward-coeff", 0)
    terms = ("--reward.likelihood-coeff", 1, "--reward.likelihood", "prob_per_token", "--reward.copy-coeff", 0.5)
    overlong = ("--reward.overlong-coeff", 2, "--reward.overlong-length", 1, "--reward.overlong-buffer", 1)
    main(score_command, *score_flags, *paper, *terms, *overlong)
    flags = lines(tmp_path / "s.jsonl")
    (tmp_path / "s.jsonl").unlink()
    function = f"{EXAMPLE.parent / 'likely_and_honest.py'}:likely_and_honest"
    options = ("--reward.options", "{honesty: 0.5, kind: prob_per_token}")
    main(score_command, *score_flags, "--reward.fn", function, *options)
    for ours, theirs in zip(lines(tmp_path / "s.jsonl"), flags, strict=True):
        assert theirs["components"]["overlong_reward"] == -2  # of the prompts, which the term reads
        assert ours["reward"] == pytest.approx(theirs["reward"] + 2, abs=1e-6)
        assert ours["components"]["likely"] == theirs["components"]["likelihood_reward"] > 0
        assert ours["components"]["honest"] == theirs["components"]["copy_reward"]
        assert ours["components"].keys() == {"likely", "honest", "solution_logp/mean"}


def test_score_knows_the_prompts(main, score_flags, texts, tmp_path):
    main(score_command, *score_flags, "--reward.fn", f"{texts}:words", "--reward.options", "{weight: 0.5}")
    for record in lines(tmp_path / "s.jsonl"):
        assert record["reward"] == 6.5 and record["components"] == {"found": 1.0}  # no model was read


def test_generate(main, tiny, rows, texts, tmp_path):
    flags = ("--teacher", tiny / "teacher", "--student", tiny / "student", "--data.path", rows, "--dtype", "float32")
    flags += ("--data.teacher-prompt-file", tiny / "teacher_prompt.txt", "--max-prompt-length", 128)
    flags += ("--max-completion-length", 32, "--on-unfinished", "keep", "--min-usable", 0, "--redraws", 0)
    out = tmp_path / "out.jsonl"
    main(generate_command, *flags, "--out", out, "--reward.fn", f"{texts}:words", "--reward.options", "{word: then}")
    assert all(record["reward"] == 6 + record["components"]["found"] for record in lines(out))


@pytest.fixture(scope="module")
def run(small, tmp_path_factory) -> tuple[Path, Path, tuple]:
    """(run folder after a step, file of its reward function, flags)."""
    folder = tmp_path_factory.mktemp("run")
    file = folder / "own.py"
    file.write_text(TEXTS)
    flags = (*small, "--output-dir", folder / "run", "--checkpoint.no-export", "--log.no-tensorboard")
    flags += ("--reward.fn", f"{file}:words", "--reward.options", "{word: '1'}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["train", *map(str, flags), "--max-steps", "1"])
        train_command.main()
    return folder / "run", file, flags


def test_train_records_the_function_and_keeps_its_file(run):
    folder, file, _ = run
    reward = load_config(folder / "config.yaml").reward
    assert (reward.fn, reward.options) == (f"{file}:words", {"word": "1"})
    assert (folder / "reward" / "own.py").read_text() == TEXTS
    (logged,) = lines(folder / "metrics.jsonl")
    assert logged["reward"] == pytest.approx(8 + logged["component/found"])
    assert "component/solution_logp/mean" not in logged and not any("score_student" in name for name in logged)


def test_a_resume_with_another_file_or_options_is_refused_or_recorded(run, main, refused, monkeypatch):
    folder, file, flags = run
    before = load_config(folder / "config.yaml").reward.fn_sha256
    flags = (*flags, "--max-steps", 2)
    said = refused(train_command, *flags, "--reward.options", "{word: '2', weight: 3}")
    assert "measure something else: reward.options.word 1 -> 2, reward.options.weight None -> 3: resume with" in said
    file.write_text(TEXTS.replace("+ len(told)", "+ 1"))
    said = refused(train_command, *flags)
    assert f"measure something else: reward.fn_sha256 {before} -> " in said and "--accept-changes" in said
    monkeypatch.setattr(by_name, "_loaded", {})  # as in another process
    said = refused(train_command, "--config", folder / "config.yaml", "--max-steps", 2)
    assert f"expected the file with SHA-256 {before}, as the settings record it, but {file} has " in said
    assert len(lines(folder / "metrics.jsonl")) == 1 and list((folder / "reward").iterdir()) == [
        folder / "reward/own.py"
    ]
    main(train_command, *flags, "--accept-changes")
    accepted, logged = lines(folder / "metrics.jsonl")[1:]
    assert accepted["accepted_changes"] == 1
    assert logged["reward"] == pytest.approx(1 + logged["component/found"])
    (change,) = (change for change in lines(folder / "changes.jsonl")[0]["changes"] if change["measured"])
    now = load_config(folder / "config.yaml").reward.fn_sha256
    assert (change["name"], change["before"], change["now"]) == ("reward.fn_sha256", before, now)
    kept = {path.name: path.read_text() for path in (folder / "reward").iterdir()}
    assert kept == {f"own-{before[:8]}.py": TEXTS, "own.py": file.read_text()}


def test_a_step_is_replayed_with_the_runs_own_function(small, main, tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text(TEXTS)
    flags = (*small, "--max-steps", 1, "--output-dir", tmp_path / "run", "--checkpoint.no-export")
    main(train_command, *flags, "--reward.fn", f"{file}:broken", "--reward.options", "{at: 1}")
    file.unlink()  # the run has a copy
    main(replay_command, tmp_path / "run")
    said = capsys.readouterr().out
    assert "your reward function broken returned: nan in explanation" in said
    assert "reproduced: the same fault" in said


def test_an_error_of_the_function_points_into_its_file(main, score_flags, texts):
    with pytest.raises(AttributeError, match="nothing") as error:
        main(score_command, *score_flags, "--reward.fn", f"{texts}:broken")
    assert error.traceback[-1].path == texts
    assert error.value.__notes__ == ["raised in your reward function broken, which was given 6 explanations"]


def test_the_plan_knows_what_the_function_reads(main, texts, capsys):
    def planned(*flags) -> dict:
        main(plan_command, "--preset", "tiny", "--json", *flags)
        return json.loads(capsys.readouterr().out)["phases"]

    usual, none = planned(), planned("--reward.fn", f"{texts}:words")
    assert planned("--reward.fn", f"{EXAMPLE}:short_and_helpful") == usual
    assert usual.keys() - none.keys() == {"score teacher", "score student"}
    owners = [{part["owner"]: part["size"] for part in phases["generate"]["gpu"]} for phases in (usual, none)]
    assert owners[0]["student"] > 0 and "student" not in owners[1]


@pytest.fixture
def in_this_process(monkeypatch):
    """The commands that a study starts run in this process, where JAX is loaded and their programs compiled."""

    def run_logged(module, flags, name, log, **options) -> str | None:
        monkeypatch.setattr(sys, "argv", [module, *map(str, flags)])
        try:
            importlib.import_module(module).main()
        except SystemExit as stop:
            return f"exit code {stop.code}"
        return None

    for studies in (ablation, pipeline):
        monkeypatch.setattr(studies, "run_logged", run_logged)


def test_ablate_compares_functions(main, in_this_process, texts, tmp_path, refused):
    base = {"preset": "tiny", "max_steps": 1, "train_batch_size": 8, "num_generations": 4, "score_batch_size": 8}
    base |= {"max_completion_length": 16, "eval_steps": 1, "data": {"eval_rows": 8}, "checkpoint": {"export": False}}
    arms = {
        "paper": {},
        "short": {"reward": {"fn": f"{EXAMPLE}:short_and_helpful", "options": {"price": 0.1, "free": 0}}},
    }
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"base": base, "arms": arms, "seeds": [1]}))
    flags = ("--study", study, "--output-dir", tmp_path / "out")
    main(ablate_command, *flags)
    usual, short = (
        next(line for line in lines(tmp_path / "out" / arm / "seed-1" / "metrics.jsonl") if "eval/reward" in line)
        for arm in arms
    )
    assert short["eval/component/solution_logp/mean"] == usual["eval/component/solution_logp/mean"]
    difference = short["eval/reward"] - usual["eval/reward"]
    assert difference == pytest.approx(short["eval/component/length_penalty"], abs=1e-5) and difference < -0.1
    assert "short" in (tmp_path / "out" / "comparison.md").read_text()
    assert (tmp_path / "out" / "short" / "seed-1" / "reward" / EXAMPLE.name).read_text() == EXAMPLE.read_text()
    arms["short"]["reward"]["fn"] = f"{texts}:nothing"
    study.write_text(yaml.safe_dump({"base": base, "arms": arms, "seeds": [1]}))
    assert f"expected a function of {texts}, but it has no nothing" in refused(ablate_command, *flags)


def test_pipeline_trains_and_chooses_by_it(main, in_this_process, tiny, texts, tmp_path, refused, monkeypatch):
    values = yaml.safe_load(study_path("tiny", "pipeline").read_text())
    values["data"] |= {"train_rows": 16, "explain_rows": 4, "heldout_rows": 4, "test_rows": 4}
    values["rlt"] = {"max_steps": 1, "train_batch_size": 8, "num_generations": 4, "per_device_train_batch_size": 8}
    values["rlt"] |= {"eval_steps": 0, "log": {"tensorboard": False}, "checkpoint": {"export": False}}
    values["reward"] = {"fn": f"{texts}:words", "options": {"word": "1"}}
    values["max_completion_length"] = 16
    study, work = tmp_path / "study.yaml", tmp_path / "work"
    study.write_text(yaml.safe_dump(values))
    flags = ("--study", study, "--work", work, "--seed", 1)
    monkeypatch.chdir(Path(__file__).parents[2])  # to which the paths of the study lead
    assert "both stages would be the same: leave out no-kl" in refused(pipeline_command, *flags, "--no-kl")
    (work / "warmup").mkdir(parents=True)
    (work / "warmup" / "final").symlink_to(tiny / "teacher")
    main(pipeline_command, *flags, "--stages", "baselines")
    for record in lines(work / "results" / "baselines.jsonl"):
        assert record["reward"] in (16, 17) and record["solution_logp"] is None
    assert "left no" in refused(pipeline_command, *flags, "--stages", "rlt")  # which exports nothing here
    assert lines(work / "rlt" / "metrics.jsonl")[0]["component/found"] >= 0
    saved = load_config(work / "rlt" / "config.yaml").reward
    assert asdict(saved)["options"] == {"word": "1"} and len(saved.fn_sha256) == 64
    texts.write_text(TEXTS + "\n")
    said = refused(pipeline_command, *flags, "--stages", "baselines")
    assert "was started with other settings (reward.fn_sha256): give another --work" in said


WRONG = [
    (("--reward.fn", "mine"), "reward.fn=mine: expected path/to/file.py:function or package.module:function, such as"),
    (("--reward.fn", ""), "reward.fn is empty: expected path/to/file.py:function or "),
    (("--reward.fn", "nowhere.py:f"), "reward.fn=nowhere.py:f: expected a Python file, but there is nothing"),
    (("--reward.fn", "nowhere:f"), "but there is no nowhere: start the command in the folder that holds it"),
    (("--reward.fn", "{texts}:word"), "but it has no word: did you mean words?"),
    (("--reward.fn", "{texts}:np"), "reward.fn={texts}:np: expected a function of RewardInputs, but it is a module"),
    (("--reward.fn", "{texts}:Rewards"), "but it is the class Rewards: name a function"),
    (("--reward.options", "{{a: 1}}"), "reward.options={{a: 1}} without reward.fn: give the function that has them"),
    (("--reward.fn-sha256", "abc"), "reward.fn_sha256=abc: expected 64 digits 0-9 and a-f, as `sha256sum FILE`"),
    (("--reward.fn", "{texts}:words", "--reward.options", "{{wrod: x}}"), "wrod: no such field: did you mean word?"),
    (("--reward.fn", "{texts}:words", "--reward.options", "{{word: 3}}"), "words: word=3: expected text"),
    (("--reward.fn", "{texts}:words", "--reward.options", "{{weight: .nan}}"), "weight=nan: expected a finite number"),
    (("--reward.fn", "{texts}:words", "--reward.options", "nowhere.yaml"), "configuration file nowhere.yaml (No such"),
    (("--reward.fn", "{texts}:words", "--reward.options", "{texts}"), "{texts}, line 6: not YAML: "),
    (("--reward.fn", "{texts}:words", "--reward.options", "{{a: "), "--reward.options, line 1: not YAML: "),
    (("--reward.fn", "{texts}:words", "--reward.options", "{{word: {secret}}}"), "expected no password or token"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG, ids=lambda value: " ".join(value)[:60])
def test_what_is_wrong_is_said(refused, score_flags, texts, tmp_path, flags, message):
    secret = "hf_" + "a1B2" * 9
    flags = [flag.format(texts=texts, secret=secret) for flag in flags]
    said = refused(score_command, *score_flags, *flags)
    assert message.format(texts=texts) in said and secret not in said
    assert not (tmp_path / "s.jsonl").exists()
