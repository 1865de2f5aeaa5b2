"""`python -m rlt_jax.pipeline`: the tiny study made short, interrupted and resumed; and the numbers of its summary."""

import csv
import json
import math
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from rlt_jax import pipeline as pipeline_command
from rlt_jax.report.owner import sole_user
from rlt_jax.studies.study_file import study_path

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "rlt_jax.pipeline")
T_OF_TWO, T_OF_EIGHT = 12.7062, 2.36462  # Student's t at 0.975 with 1 and 7 degrees of freedom, from a table


def call(*flags: object, expected: int = 0) -> str:
    """What the command prints, run from the repository's root, to which the paths of the study lead."""
    line = [*COMMAND, *map(str, flags)]
    done = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == expected, done.stdout[-3000:]
    return done.stdout


@pytest.fixture
def refused(main, monkeypatch, capsys) -> Callable[..., str]:
    """refused(*flags): what the command prints in this process, where it ends with exit code 2."""

    def run(*flags: object) -> str:
        monkeypatch.chdir(REPOSITORY)
        with pytest.raises(SystemExit) as stop:
            main(pipeline_command, *flags)
        assert stop.value.code == 2
        told = capsys.readouterr()
        assert "Traceback" not in told.out + told.err
        return told.out + told.err

    return run


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """The tiny study with sizes that take seconds."""
    values = yaml.safe_load(study_path("tiny", "pipeline").read_text())
    values["data"] |= {"train_rows": 32, "explain_rows": 8, "heldout_rows": 8, "test_rows": 8}
    sizes = {"max_steps": 2, "train_batch_size": 4, "per_device_train_batch_size": 4, "log": {"tensorboard": False}}
    values["warmup"] |= sizes | {"learning_rate": 1e-4}
    values["distil"] |= sizes | {"learning_rate": 1e-3}
    values["rlt"] = {"max_steps": 3, "train_batch_size": 8, "num_generations": 4, "per_device_train_batch_size": 8}
    values["rlt"] |= {"learning_rate": 1e-3, "eval_steps": 3, "save_steps": 1, "log": {"tensorboard": False}}
    values |= {"samples": 2, "students": ["rlt"]}
    path = tmp_path_factory.mktemp("pipeline") / "study.yaml"
    path.write_text(json.dumps(values))  # which is YAML
    return path


@pytest.fixture(scope="module")
def interrupted(study) -> tuple[Path, int, str]:
    """(work folder, exit code, output) of a call that was ended while RLT took its second step."""
    work = study.parent / "seed-1"
    line = [*COMMAND, "--study", str(study), "--work", str(work), "--seed", "1"]
    printed = []
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        for text in process.stdout:
            printed.append(text)
            if text.startswith("rlt: step 2/3  reward"):  # the first step's checkpoint is written
                process.send_signal(signal.SIGTERM)
    return work, process.returncode, "".join(printed)


@pytest.fixture(scope="module")
def whole(study, interrupted) -> tuple[Path, str]:
    """(work folder, output) of the same call, which resumed and came to the end."""
    work = interrupted[0]
    return work, call("--study", study, "--work", work, "--seed", "1")


def test_an_interrupted_call_resumes(interrupted, whole):
    work, code, before = interrupted
    assert code == 128 + signal.SIGTERM
    assert "[baselines] baselines: " in before and "[rlt] rlt: " not in before
    after = whole[1]
    assert "[warmup] warmup: already done" in after and "[baselines] baselines: already done" in after
    assert "rlt: INFO resuming from step" in after
    steps = [line["step"] for line in lines(work / "rlt" / "metrics.jsonl") if "reward" in line]
    assert steps == [1, 2, 3]
    assert [line["step"] for line in lines(work / "rlt" / "metrics.jsonl") if "eval/reward" in line] == [0, 3]
    for model in ("warmup", "rlt", "student-rlt"):
        assert (work / model / "final" / "model.safetensors").exists()


def test_times_of_interrupted_commands_count(whole):
    times = [(line["task"], line["finished"]) for line in lines(whole[0] / "seconds.jsonl")]
    assert [time for time in times if time[0] == "rlt"] == [("rlt", False), ("rlt", True)]
    assert times.count(("warmup", True)) == 1


def test_done_work_is_not_done_again(study, whole):
    output = call("--study", study, "--work", whole[0], "--seed", "1")
    assert "python -m" not in output
    assert output.count("already done") == 10


def test_baselines_are_what_they_are_called(whole):
    work = whole[0]
    held_out, rows = lines(work / "data" / "heldout.jsonl"), lines(work / "baselines" / "baselines.rows.jsonl")
    assert [row["kind"] for row in rows[::8]] == ["none", "shuffled", "true", "copied"]
    assert rows[0]["completion"] == "<|end_of_explanation|>"
    assert rows[8]["completion"].startswith(held_out[1]["reasoning_trace"])
    values = {
        (line["kind"], line["row"]): line["solution_logp"] for line in lines(work / "results" / "baselines.jsonl")
    }
    scores = lines(work / "baselines" / "baselines.scores.jsonl")
    assert values["copied", 3] == scores[3 * 8 + 3]["components"]["solution_logp/mean"]
    # this student has learnt to read worked steps: the true ones tell it nearly everything
    mean = {kind: statistics.mean(values[kind, row] for row in range(8)) for kind in ("none", "shuffled", "true")}
    assert mean["true"] > -0.1 > -0.5 > mean["shuffled"] > mean["none"]


def test_students_get_the_best_explanations_of_the_same_questions(whole):
    work = whole[0]
    explained, taught = lines(work / "explained" / "rlt.jsonl"), lines(work / "distil" / "rlt.jsonl")
    (matched,) = lines(work / "results" / "matched.jsonl")
    assert len(taught) == matched["questions"] <= matched["common"] <= matched["asked"] == 8
    assert matched["tokens"]["rlt"] == sum(row["tokens"] for row in taught)
    assert abs(matched["tokens"]["rlt"] - matched["tokens"]["warmup"]) <= 0.02 * min(matched["tokens"].values()) or (
        matched["questions"] == 4  # half of them is the least
    )
    for row in taught:
        assert row["reward"] == max(other["reward"] for other in explained if other["row"] == row["row"])
    kept = [line for line in lines(work / "results" / "explained-rlt.jsonl") if line["kept"]]
    assert len({line["row"] for line in kept}) == len(kept) == len({row["row"] for row in explained})


def test_what_a_student_finds_likely(whole):
    """own_logp is the log-prob of the solution after the student's own words, a mean over its samples."""
    work = whole[0]
    rows, scores = lines(work / "evaluated" / "rlt.rows.jsonl"), lines(work / "evaluated" / "rlt.scores.jsonl")
    answers = lines(work / "evaluated" / "rlt.jsonl")
    assert len(rows) == len(scores) == 8 + 8 + 16
    written = answers[5]["completion"].partition("<|end_of_thought|>")[0]
    assert rows[16 + 5]["completion"] == written + "<|end_of_explanation|>"
    own_scores = [score for row, score in zip(rows, scores) if (row["kind"], row["place"]) == ("own", 2)]
    assert len(own_scores) == 2
    values = {line["row"]: line for line in lines(work / "results" / "student-rlt.jsonl")}
    own = statistics.mean(score["components"]["solution_logp/mean"] for score in own_scores)
    assert values[2]["own_logp"] == pytest.approx(own, abs=1e-9)
    assert values[2]["accuracy"] == statistics.mean(answer["correct"] for answer in answers if answer["row"] == 2)
    config = yaml.safe_load((work / "tasks" / "logp-rlt.yaml").read_text())
    assert config["reward"]["unbias_student_log_probs_temp"] is None  # temperature 1


@pytest.fixture(scope="module")
def summary(whole) -> tuple[Path, Path, Path]:
    """(work folder, one that stands for another seed, results of both)."""
    first = whole[0]
    archive, unpacked = first.parent / "seed-1.tar.gz", first.parent / "unpacked"
    call("--work", first, "--collect", archive)
    assert archive.stat().st_size < 2**24
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    assert not list(unpacked.rglob("*.safetensors"))
    second = unpacked / "seed-2"  # made up: other numbers in the same files
    shutil.copytree(unpacked / "seed-1", second)
    for settings in (*(second / "tasks").glob("*.yaml"), *second.glob("*/config.yaml")):
        settings.write_text(settings.read_text().replace("\nseed: 1\n", "\nseed: 2\n"))
    for name, shift in (("base", 0.25), ("rlt", -0.5)):
        file = second / "results" / f"student-{name}.jsonl"
        changed = [{**line, "own_logp": line["own_logp"] + shift * (line["row"] + 1)} for line in lines(file)]
        file.write_text("".join(json.dumps(line) + "\n" for line in changed))
    out = first.parent / "results"
    call("--summary", unpacked / "seed-1", second, "--out", out)
    return first, second, out


def read_csv(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="") as file:
        return {(record["variant"], record["quantity"]): record for record in csv.DictReader(file)}


def own_logps(work: Path, student: str) -> dict[int, float]:
    return {line["row"]: line["own_logp"] for line in lines(work / "results" / f"student-{student}.jsonl")}


def test_intervals_over_seeds(summary):
    first, second, out = summary
    table = read_csv(out / "summary.csv")
    means = [statistics.mean(own_logps(work, "rlt").values()) for work in (first, second)]
    half = T_OF_TWO * statistics.stdev(means) / math.sqrt(2)
    record = table["on the RLT teacher's", "own_logp"]
    assert (record["seeds"], record["prompts"], record["over"]) == ("2", "16", "seeds")
    assert float(record["mean"]) == pytest.approx(statistics.mean(means), rel=1e-9)
    assert float(record["ci_high"]) - float(record["mean"]) == pytest.approx(half, rel=1e-4)
    pairs = [(own_logps(work, "rlt"), own_logps(work, "base")) for work in (first, second)]
    changes = [statistics.mean(rlt[row] - base[row] for row in rlt) for rlt, base in pairs]
    record = table["on the RLT teacher's − student as it is", "own_logp"]
    assert float(record["mean"]) == pytest.approx(statistics.mean(changes), rel=1e-9)
    half = T_OF_TWO * statistics.stdev(changes) / math.sqrt(2)
    assert float(record["mean"]) - float(record["ci_low"]) == pytest.approx(half, rel=1e-4)
    text = (out / "summary.md").read_text()
    assert "| on the RLT teacher's | 2 | " in text and f"| {statistics.mean(means):.3f} ± " in text
    for picture in ("rlt.png", "students.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG") and f"({picture})" in text


def test_one_seed_does_not_count_twice(summary, tmp_path, refused):
    first, second, _ = summary
    for folders in ((first, first), (first, second, first)):
        error = refused("--summary", *folders, "--out", tmp_path / "out")
        assert f"--summary {first} {first}: both are of seed 1, expected one folder per seed" in error
    assert not (tmp_path / "out").exists()


def test_folders_of_different_studies_are_not_pooled(summary, tmp_path, refused):
    first, second, _ = summary
    other = tmp_path / "other"
    shutil.copytree(second, other)
    settings = other / "tasks" / "rlt.yaml"
    settings.write_text(settings.read_text().replace("max_steps: 3", "max_steps: 4"))
    error = refused("--summary", first, other, "--out", tmp_path / "out")
    assert error.endswith("differ only in their seed, but these settings differ: rlt.max_steps\n")
    assert not (tmp_path / "out").exists()


def test_intervals_over_prompts_under_one_seed(summary, tmp_path):
    first = summary[0]
    call("--summary", first, "--out", tmp_path)
    table = read_csv(tmp_path / "summary.csv")
    record = table["on the RLT teacher's − student as it is", "own_logp"]
    rlt, base = own_logps(first, "rlt"), own_logps(first, "base")
    changes = [rlt[row] - base[row] for row in rlt]
    assert (record["over"], record["prompts"]) == ("prompts", "8")
    assert float(record["mean"]) == pytest.approx(statistics.mean(changes), rel=1e-9)
    half = T_OF_EIGHT * statistics.stdev(changes) / math.sqrt(8)
    assert float(record["ci_high"]) - float(record["mean"]) == pytest.approx(half, rel=1e-4)
    # the teacher before and after, from the run's own evaluations
    evaluations = {(line["step"], line["row"]): line["solution_logp/mean"] for line in lines(first / "rlt/eval.jsonl")}
    changes = [evaluations[3, row] - evaluations[0, row] for row in range(8)]
    record = table["RLT teacher − warmed-up teacher", "solution_logp"]
    assert float(record["mean"]) == pytest.approx(statistics.mean(changes), rel=1e-6)
    losses = [line["eval/loss"] for line in lines(first / "warmup" / "metrics.jsonl") if "eval/loss" in line]
    assert float(table["after − before", "loss"]["mean"]) == pytest.approx(losses[-1] - losses[0], rel=1e-6)
    assert table["after − before", "loss"]["ci_low"] == ""  # one number: no interval


def test_the_time_is_up(study, tmp_path):
    output = call("--study", study, "--work", tmp_path / "w", "--minutes", "0.0001", expected=3)
    assert "[warmup] warmup: the time is up, repeat the call to resume" in output
    assert not (tmp_path / "w" / "warmup" / "final").exists()


def test_other_settings_in_the_same_folder_are_refused(study, whole, refused):
    values = yaml.safe_load(study.read_text())
    values["rlt"]["learning_rate"] = 0.5
    other = study.with_name("other.yaml")
    other.write_text(json.dumps(values))
    error = refused("--study", other, "--work", whole[0], "--seed", "1")
    assert "rlt.yaml: rlt was started with other settings (learning_rate): give another --work" in error
    error = refused("--study", study, "--work", whole[0], "--seed", "2")
    assert "was started with other settings (seed)" in error


TINY = ("--study", "tiny", "--work", "{new}/seed-1")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            (),
            "nothing to do: give --study NAME and --work DIR, or --collect FILE and --work DIR, or --summary DIR ...",
        ),
        (("--study", "tiny"), "--work is missing: give a folder for the pipeline's files"),
        (
            ("--work", "nowhere", "--collect", "x.tar.gz"),
            "--work nowhere: expected the work folder of a pipeline, but it has no seconds.jsonl",
        ),
        (
            ("--summary", "nowhere"),
            "--summary nowhere: expected the work folder of a pipeline, but it has no seconds.jsonl",
        ),
        (
            (*TINY, "--summary", "{new}/seed-1", "nowhere"),
            "--summary nowhere: expected the work folder of a pipeline, but it has no seconds.jsonl",
        ),
        (
            ("--study", "no.yaml", "--work", "{new}"),
            "--study no.yaml: expected a YAML file, or one of the package's: lab, lab-legs, tiny",
        ),
        ((*TINY, "--minutes", "-1"), "--minutes -1: expected a number above 0; leave it out for no limit"),
        ((*TINY, "--minutes", "0"), "--minutes 0: expected a number above 0; leave it out for no limit"),
        ((*TINY, "--minutes", "nan"), "--minutes nan: expected a number above 0; leave it out for no limit"),
        ((*TINY, "--minutes", "inf"), "--minutes inf: expected a number above 0; leave it out for no limit"),
        ((*TINY, "--seed", "-1"), "--seed -1: expected a whole number from 0 to 2**31 - 1"),
        ((*TINY, "--collect", "c.zip"), "--collect c.zip: expected a name that ends in .tar.gz"),
        (
            ("--study", "tiny", "--minutes", "0", "--collect", "c.zip"),
            "--work is missing: give a folder for the pipeline's files\n"
            "--minutes 0: expected a number above 0; leave it out for no limit\n"
            "--collect c.zip: expected a name that ends in .tar.gz",
        ),
        ((*TINY, "--stages", "rlt"), "rlt needs {new}/seed-1/warmup/final: run the stages before rlt first"),
        (
            (*TINY, "--stages", "evaluate", "explain", "rlt"),
            "rlt needs {new}/seed-1/warmup/final: run the stages before rlt first\n"
            "evaluate needs {new}/seed-1/student-warmup/final, {new}/seed-1/student-rlt/final: run the stages before "
            "evaluate first",
        ),
    ],
)
def test_mistakes(flags, message, tmp_path, refused):
    new = str(tmp_path / "new")
    output = refused(*(flag.replace("{new}", new) for flag in flags))
    assert output == f"error: {message.replace('{new}', new)}\n"
    assert not (tmp_path / "new").exists()


def test_options_can_stand_in_a_file(tmp_path):
    printed = call("--study", "tiny", "--work", tmp_path / "new", "--stages", "rlt", "--print-config")
    values = yaml.safe_load(printed)
    assert (values["study"], values["stages"], values["no_kl"], values["summary"]) == ("tiny", ["rlt"], False, [])
    (tmp_path / "options.yaml").write_text(printed)
    output = call("--config", tmp_path / "options.yaml", expected=2)
    assert output == f"error: rlt needs {tmp_path}/new/warmup/final: run the stages before rlt first\n"
    assert not (tmp_path / "new").exists()


def test_help_waits_for_no_large_library():
    code = "import sys, rlt_jax.pipeline; print(sorted({'jax', 'matplotlib', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_archive_is_not_replaced(tmp_path, refused):
    archive = tmp_path / "c.tar.gz"
    archive.write_bytes(b"old")
    output = refused("--work", tmp_path, "--collect", archive)
    assert output == f"error: --collect {archive} exists: choose another file, or delete it\n"
    assert archive.read_bytes() == b"old"


def test_a_work_folder_in_use_is_refused(study, tmp_path):
    line = [sys.executable, "-m", "rlt_jax.pipeline", "--study", str(study), "--work", str(tmp_path / "work")]
    with sole_user(tmp_path / "work", "--work"):
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert [path.name for path in (tmp_path / "work").iterdir()] == [".lock"]
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--work {tmp_path / 'work'} is in use by another run (process " in done.stderr


def test_a_study_without_its_data_leaves_no_folder(study, tmp_path, refused):
    values = yaml.safe_load(study.read_text())
    values["data"]["path"] = "no/rows.jsonl"
    (tmp_path / "study.yaml").write_text(json.dumps(values))
    output = refused("--study", tmp_path / "study.yaml", "--work", tmp_path / "new")
    assert output == "error: expected rows at 'no/rows.jsonl', but there is no such file or folder: check the path\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_prompt_file": "no.txt"}, "expected a prompt file at no.txt"),
        ({"data": {"explain_rows": 33}}, "data.explain_rows=33: expected at most the 32 rows to train on"),
        (
            {"data": {"path": "{bare}"}},
            "{bare}: expected rows with a reasoning_trace for the warm-up, but none of 32 has one: add "
            "data.trace_column: rationale, which looks right",
        ),
        ({"reward_student": "{other}"}, "expected teacher and student to share one vocabulary"),
    ],
)
def test_what_would_fail_later_is_refused_before_anything_is_done(changes, message, study, tmp_path, refused):
    bare, other = tmp_path / "bare.jsonl", tmp_path / "other"
    rows = [{"question": f"{i}?", "solution": str(i), "rationale": "Count."} for i in range(40)]
    bare.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(REPOSITORY / "rlt_jax" / "assets" / "tiny" / "student", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    values = json.loads(study.read_text())
    filled = json.loads(json.dumps(changes).replace("{bare}", str(bare)).replace("{other}", str(other)))
    for name, value in filled.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    (tmp_path / "study.yaml").write_text(json.dumps(values))
    output = refused("--study", tmp_path / "study.yaml", "--work", tmp_path / "work")
    assert output.splitlines()[-1].startswith(f"error: {message.replace('{bare}', str(bare))}")
    assert not (tmp_path / "work").exists()


@pytest.fixture
def undistilled(whole, tmp_path) -> Iterator[Path]:
    """The whole work folder as it was before its students; a folder cannot be copied elsewhere, so it is put back."""
    work = whole[0]
    shutil.copytree(work, tmp_path / "kept")
    for made in ("distil", "student-rlt"):
        shutil.rmtree(work / made)
    (work / "results" / "matched.jsonl").unlink()
    yield work
    shutil.rmtree(work)
    shutil.move(tmp_path / "kept", work)


def test_a_warning_says_that_students_were_taught_unequally(study, undistilled):
    explained = undistilled / "explained" / "rlt.jsonl"
    longer = [row | {"tokens": row["tokens"] * 3} for row in lines(explained)]
    explained.write_text("".join(json.dumps(row) + "\n" for row in longer))
    output = call("--study", study, "--work", undistilled, "--seed", "1", "--stages", "distil")
    (matched,) = lines(undistilled / "results" / "matched.jsonl")
    assert matched["questions"] == round(matched["common"] / 2) == len(lines(undistilled / "distil" / "rlt.jsonl"))
    more = matched["tokens"]["rlt"] / matched["tokens"]["warmup"] - 1
    assert more > 0.5
    assert f"WARNING {more:.1%} more tokens for one student than for the other (token_tolerance allows 2.0%)" in output


def test_students_are_not_taught_with_two_tolerances(study, whole, tmp_path, refused):
    changed = tmp_path / "study.yaml"
    changed.write_text(json.dumps(json.loads(study.read_text()) | {"token_tolerance": 0.5}))
    output = refused("--study", changed, "--work", whole[0], "--seed", "1")
    assert "questions were matched with token_tolerance=0.02, which is now 0.5: give another --work" in output


@pytest.mark.parametrize("name", ["teacher", "student", "reward_student"])
def test_a_study_without_its_models_begins_nothing(name, study, tmp_path, refused):
    values = json.loads(study.read_text()) | {name: str(tmp_path / "nowhere")}
    (tmp_path / "study.yaml").write_text(json.dumps(values))
    output = refused("--study", tmp_path / "study.yaml", "--work", tmp_path / "work")
    assert output.startswith(f"error: {name}: expected a model's folder") and "nowhere" in output
    assert not (tmp_path / "work").exists()
