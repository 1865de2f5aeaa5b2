"""`python -m rlt_jax.train` from start to end: what it writes, and that a resumed run is the same run."""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, Qwen2ForCausalLM

from rlt_jax import train as train_command
from rlt_jax.batching import bucket_length
from rlt_jax.configs import DataConfig, load_config, parse_train_args
from rlt_jax.data import ChatFormat, build_prompts, load_tokenizer, score_row_from_ids
from rlt_jax.data.rows import row_from
from rlt_jax.losses.component_names import REDUCTIONS
from rlt_jax.models import load_model
from rlt_jax.rewards.rlt import RewardInputs, Rewards
from rlt_jax.runs.chat_format import load_chat_format
from rlt_jax.train import train
from tests.commands.comparing import without_times

pytestmark = pytest.mark.slow

STEPS = 6
SHORTEST = 66  # tokens of the shortest prompt: one less is still in its bucket
PARTS = ("score", "score_teacher", "score_student", "score_reference", "update")
METRICS = (  # of every training line, beside the components
    *("reward", "reward_std", "zero_spread_share", "loss", "kl", "entropy", "grad_norm", "learning_rate"),
    *("near_zero_spread_share", "skipped_steps"),
    *(f"alarm/{name}" for name in ("zero_spread", "cut_off", "kl", "entropy", "sampler_mismatch", "grad_spike")),
    *("completion_length/min", "completion_length/mean", "completion_length/max"),
    *("cut_off_share", "match_rate", "copy_rate", "repeat_rate", "trace_copy_rate", "compilations", "memory/host_gb"),
    *(f"tokens/{part}_{count}" for part in PARTS for count in ("real", "computed", "shared")),
    *("attention/fused", "attention/flat", "attention/flash3", "seconds/compile"),
    *(f"seconds/{phase}" for phase in ("generate", "score", "update", "sync", "step")),
    *(f"tokens_per_second/{phase}" for phase in ("generate", "score", "update")),
)
COMPARED = (  # log-probs of sampler and policy
    *("sampler_logp_diff", "sampler_logp_diff_max", "importance_ratio", "importance_ratio_max", "importance_capped"),
)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def training_lines(run_dir: Path) -> list[dict]:
    return [line for line in lines(run_dir / "metrics.jsonl") if "reward" in line]


def checkpoint(run_dir: Path, step: int) -> list[np.ndarray]:
    """All arrays of a checkpoint: policy, its low halves, moments, reference."""
    parts = sorted((run_dir.resolve() / "checkpoints" / str(step) / "arrays").iterdir())
    read = [ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(part) for part in parts]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(read)]


def assert_same_run(ours: Path, theirs: Path, last: int) -> None:
    """Equal bit for bit: everything in the checkpoint, the exported weights, the metrics but for times."""
    for a, b in zip(checkpoint(ours, last), checkpoint(theirs, last), strict=True):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    assert (ours / "final" / "model.safetensors").read_bytes() == (theirs / "final" / "model.safetensors").read_bytes()
    assert without_times(lines(ours / "metrics.jsonl")) == without_times(lines(theirs / "metrics.jsonl"))
    for file in ("completions.jsonl", "eval.jsonl"):
        assert ((ours / file).exists(), (theirs / file).exists()) in ((True, True), (False, False))
        if (ours / file).exists():
            assert lines(ours / file) == lines(theirs / file)


def in_one_bucket(rows: list[dict], chat: ChatFormat) -> bool:
    """Whether teacher's and student's sequences stay in their bucket, however many of 16 tokens are drawn."""
    prompts = build_prompts([row_from(0, row) for row in rows], chat, max_prompt_length=1000).prompts
    read = [score_row_from_ids(prompt, np.empty(0, np.int32), chat, ()).student_ids for prompt in prompts]
    teacher, student = ([len(x) for x in ids] for ids in ([prompt.teacher_ids for prompt in prompts], read))
    return all(
        min(lengths) >= SHORTEST and bucket_length(min(lengths)) == bucket_length(max(lengths) + 16 + 4)  # 4: the seam
        for lengths in (teacher, student)
    )


@pytest.fixture(scope="module")
def data(tiny, tmp_path_factory) -> dict[str, Path]:
    """train: 40 good rows, three that cannot be used (3, 7, 11) and two that are too long (20, 21). eval: 8 rows.

    The questions are lengthened until a run sees one bucket only, so that what it compiles is known.
    """
    good = {name: lines(tiny / f"{name}.jsonl")[:40] for name in ("train", "eval")}
    chat = load_chat_format(
        str(tiny / "teacher"),
        str(tiny / "student"),
        tags="bespoke",
        teacher_prompt_file=str(tiny / "teacher_prompt.txt"),
        student_prompt_file=None,
    )
    for count in range(60):
        rows = {
            name: [{**row, "question": "Now" + "," * count + " " + row["question"]} for row in good[name]]
            for name in good
        }
        if in_one_bucket(rows["train"] + rows["eval"], chat):
            break
    else:
        raise AssertionError("no length of the questions keeps a run in one bucket")
    written = {name: [json.dumps(row) for row in rows[name]] for name in rows}
    long = json.dumps({"question": "What is " + " + ".join("1234567890" * 5) + "?", "solution": "1"})
    for place, line in ((3, "{"), (7, '{"question": "q", "solution": " "}'), (11, '{"solution": "5"}')):
        written["train"].insert(place, line)
    written["train"][20:20] = [long, long]
    folder = tmp_path_factory.mktemp("data")
    for name in written:
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in written[name]))
    return {name: folder / f"{name}.jsonl" for name in written}


@pytest.fixture(scope="module")
def flags(data, small, tiny) -> tuple:
    """The flags of the runs that are compared with each other."""
    return (
        *(*small, "--data.path", data["train"], "--data.eval-path", data["eval"], "--max-prompt-length", "100"),
        *("--data.teacher-prompt-file", tiny / "teacher_prompt.txt"),
        *("--save-steps", 2, "--eval-steps", 3, "--ref.ref-model-sync-steps", 2, "--log.sample-probability", 1.0),
    )


@pytest.fixture(scope="module")
def run(flags, command, tmp_path_factory) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    printed = command("train", *flags, "--max-steps", STEPS, "--output-dir", folder)
    (folder.parent / "printed.txt").write_text(printed)
    return folder


@pytest.fixture(scope="module")
def killed(flags, command, tmp_path_factory) -> Path:
    """The folder of the same run, killed after its third step and continued from its saved configuration."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    line = [sys.executable, "-m", "rlt_jax.train", *flags, "--max-steps", 1000, "--output-dir", folder]
    with subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for printed in process.stdout:
            if printed.startswith("step    3/1000  reward"):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 2 <= max(int(path.name) for path in (folder / "checkpoints").glob("[0-9]")) < STEPS
    assert lines(folder / "metrics.jsonl")[-1]["step"] >= 3 and not (folder / "final").exists()
    command("train", "--config", folder / "config.yaml", "--max-steps", STEPS)
    return folder


def test_a_run_leaves_its_files(run):
    expected = {
        *("config.yaml", "inputs.json", "metrics.jsonl", "eval.jsonl", "completions.jsonl", "curves.png"),
        *("logs", "tensorboard", "checkpoints", "rollouts", "final"),
    }
    assert {path.name for path in run.iterdir()} == expected
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG") and (run / "curves.png").stat().st_size > 20_000
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]


def test_completions_drawn_before_a_kill_are_not_drawn_again(run, killed):
    assert "drawn before the interruption" not in (run / "logs" / "training.log").read_text()
    again = re.findall(r"rollouts/(\S+)\.safetensors: using the", (killed / "logs" / "training.log").read_text())
    assert "3" in again  # the checkpoint is that of step 2, and step 3 was logged
    left = sorted(path.name.removesuffix(".safetensors") for path in (run / "rollouts").iterdir())
    assert left == ["5", "6", "6-eval"]  # those after the oldest checkpoint


def test_what_is_printed_says_how_it_went_and_where_the_files_are(run, data):
    printed = (run.parent / "printed.txt").read_text()
    assert [f"step {step}/{STEPS}  reward " in printed for step in range(1, STEPS + 1)] == [True] * STEPS
    assert f"Held-out prompts, before and after (8 prompts of {data['eval']}, paired; ± standard error)" in printed
    assert "\n  reward" in printed and "\n  solution_logp/mean" in printed
    for name in ("metrics.jsonl", "completions.jsonl", "curves.png", "final"):
        assert f"{run / name}\n" in printed


def test_metrics_are_complete_and_consistent(run):
    logged = training_lines(run)
    assert [line["step"] for line in logged] == list(range(1, STEPS + 1))
    components = [f"component/{part}/{r}" for part in ("solution_logp", "thought_kl") for r in REDUCTIONS]
    components += ["component/solution_logp_reward", "component/kl_reward", "component/match_reward"]
    for line in logged:
        assert all(math.isfinite(line[name]) for name in (*METRICS, *components))
        terms = line["component/solution_logp_reward"] + line["component/kl_reward"] + line["component/match_reward"]
        assert line["reward"] == pytest.approx(terms, abs=1e-4)
        assert line["loss"] == pytest.approx(0.04 * line["kl"], abs=1e-5)  # the advantages of a group sum to 0
        assert 1 <= line["completion_length/min"] <= line["completion_length/mean"] <= line["completion_length/max"]
        assert line["completion_length/max"] <= 16
        assert line["match_rate"] == pytest.approx(1 + line["component/match_reward"])
        assert line["grad_norm"] > 0 and line["learning_rate"] == pytest.approx(1e-3)
        phases = sum(line[f"seconds/{phase}"] for phase in ("generate", "score", "update", "sync"))
        assert phases <= line["seconds/step"]
    assert logged[0]["kl"] == pytest.approx(0.0, abs=1e-6) and logged[1]["kl"] > 1e-5  # reference = policy at first


def test_nothing_is_compiled_after_the_first_steps(run):
    compiled = [line["compilations"] for line in training_lines(run)]
    assert compiled[0] > 0
    assert compiled[2:] == [0.0] * (STEPS - 2)


def test_evaluations_are_logged_like_training(run):
    evaluated = [line for line in lines(run / "metrics.jsonl") if "eval/reward" in line]
    assert [line["step"] for line in evaluated] == [0, 3, 6]
    records = lines(run / "eval.jsonl")
    assert [record["step"] for record in records] == [0] * 8 + [3] * 8 + [6] * 8
    for line in evaluated:
        of_step = [record for record in records if record["step"] == line["step"]]
        assert [record["row"] for record in of_step] == list(range(8))
        assert line["eval/reward"] == pytest.approx(np.mean([record["reward"] for record in of_step]), rel=1e-5)
        assert line["eval/component/solution_logp/mean"] < 0 and 0 <= line["eval/match_rate"] <= 1


def test_completions_are_sampled_with_their_scores(run):
    samples, logged = lines(run / "completions.jsonl"), training_lines(run)
    assert [sample["step"] for sample in samples] == [step for step in range(1, STEPS + 1) for _ in range(8)]
    for line in logged:
        of_step = [sample for sample in samples if sample["step"] == line["step"]]
        assert {sample["weight_version"] for sample in of_step} == {line["step"] - 1}  # drawn by the newest weights
        assert line["reward"] == pytest.approx(np.mean([sample["reward"] for sample in of_step]), rel=1e-5)
        assert line["completion_length/mean"] == np.mean([sample["tokens"] for sample in of_step])
        assert len({sample["row"] for sample in of_step[:4]}) == len({sample["row"] for sample in of_step[4:]}) == 1
        assert len({sample["explanation"] for sample in of_step[:4]}) > 1  # a group has a seed of its own each


def test_tensorboard_shows_the_same_numbers(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    shown = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors("reward")]
    assert shown == [(line["step"], pytest.approx(line["reward"], rel=1e-6)) for line in training_lines(run)]


def test_rows_that_are_not_used_are_counted_in_the_log(run, data):
    log = (run / "logs" / "training.log").read_text()
    reasons = "1 x not JSON (row 3); 1 x solution is empty (row 7); 1 x no question (row 11)"
    assert f"WARNING rlt_jax: {data['train']}: 42 rows, 3 skipped: {reasons}\n" in log
    assert "WARNING rlt_jax: 2 training rows skipped: 2 x prompt is too long (rows 20, 21)\n" in log
    assert f" on 40 rows of {data['train']} (5 skipped), 6 steps of 2 questions x 4 completions; the frozen " in log
    used = {sample["row"] for sample in lines(run / "completions.jsonl")}
    assert used and not used & {3, 7, 11, 20, 21}


def test_the_resolved_configuration_is_saved_and_runs_again(run, flags, main, capsys):
    saved = load_config(run / "config.yaml")
    line = [str(flag) for flag in (*flags, "--max-steps", STEPS, "--output-dir", run)]
    assert saved == parse_train_args(line)[0]
    main(train_command, *line, "--print-config")
    printed = capsys.readouterr().out
    assert printed == (run / "config.yaml").read_text()
    main(train_command, "--config", run / "config.yaml", "--print-config")
    assert capsys.readouterr().out == printed


def test_the_trained_teacher_opens_in_transformers_with_equal_logits(run, tiny):
    theirs = Qwen2ForCausalLM.from_pretrained(run / "final", dtype=torch.float32)
    model, params = load_model(run / "final", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    ids = tokenizer("What is 21+34? Explain the steps.", return_tensors="np")["input_ids"]
    assert ids.tolist() == [load_tokenizer(tiny / "teacher")("What is 21+34? Explain the steps.")["input_ids"]]
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model.logits(params, ids, np.ones_like(ids)), expected, atol=1e-4)
    before = load_file(tiny / "teacher" / "model.safetensors")
    after = load_file(run / "final" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = [np.abs(after[name] - before[name]).max() for name in after]
    assert min(moved) > 0 and max(moved) < 0.1


def test_a_run_that_was_killed_resumes_as_if_nothing_had_happened(run, killed):
    assert "resuming from step" in (killed / "logs" / "training.log").read_text()
    assert_same_run(killed, run, STEPS)


def test_two_steps_and_two_more_are_four_in_bfloat16(flags, tmp_path):
    """The weights' low halves are part of the state: without them the second half would start from rounded weights."""

    def run(name: str, steps: int) -> Path:
        line = [*flags, "--dtype", "bfloat16", "--max-steps", steps, "--eval-steps", 2, "--output-dir", tmp_path / name]
        return train(parse_train_args(list(map(str, line)))[0])

    whole, halves = run("whole", 4), run("halves", 2)
    assert lines(halves / "metrics.jsonl")[-1]["step"] == 2
    assert run("halves", 4) == halves
    assert_same_run(halves, whole, 4)
    low = [array for array in checkpoint(whole, 4) if array.dtype == np.uint16]
    assert low and all(array.any() for array in low)


def test_a_finished_run_is_left_as_it_is(run, flags, main, capsys):
    weights = (run / "final" / "model.safetensors").read_bytes()
    metrics = (run / "metrics.jsonl").read_text()
    main(train_command, *flags, "--max-steps", STEPS, "--output-dir", run)
    assert (run / "final" / "model.safetensors").read_bytes() == weights
    assert (run / "metrics.jsonl").read_text() == metrics
    assert "reward" in capsys.readouterr().out


def test_a_reward_of_ones_own_with_prompts_cut_on_their_left(flags, tmp_path):
    """`train(config, reward_fn=...)`: it is what is trained on and logged. No prompt fits, so all are cut."""

    def sum_of_digits(text: str) -> int:
        return sum(int(character) for character in text if character.isdigit())

    def smallness(inputs: RewardInputs) -> Rewards:
        sums = np.array([sum_of_digits(row.explanation) for row in inputs.rows], np.float32)
        assert all(len(prompt.teacher_ids) == SHORTEST - 1 for prompt in inputs.prompts)
        return Rewards(-sums, {"digits": sums})

    line = [*flags, "--max-prompt-length", SHORTEST - 1, "--data.truncate-prompts"]
    line += ["--max-steps", 1, "--output-dir", tmp_path]
    config, _ = parse_train_args(list(map(str, line)))
    assert train(config, reward_fn=smallness) == tmp_path
    (logged,), samples = training_lines(tmp_path), lines(tmp_path / "completions.jsonl")
    assert len(samples) == 8
    for sample in samples:
        assert sample["reward"] == -sample["digits"] == -sum_of_digits(sample["explanation"])
    assert logged["reward"] == -logged["component/digits"] == np.mean([sample["reward"] for sample in samples])
    assert "component/solution_logp/mean" not in logged and logged["reward_std"] > 0
    assert logged["grad_norm"] > 1e-3  # rounding alone gives less


def test_the_reference_may_stand_in_for_the_teacher(run, flags, tmp_path):
    """Equal as long as policy and reference are; then only the teacher's side of the KL differs."""
    line = [*flags, "--reward.use-reference-teacher-model", "--max-steps", 2, "--output-dir", tmp_path]
    train(parse_train_args(list(map(str, line)))[0])
    for ours, policys in zip(training_lines(tmp_path), training_lines(run)):
        for name in ("component/solution_logp/mean", "component/thought_surprisal/mean"):
            assert ours[name] == pytest.approx(policys[name], abs=1e-5)
        kl, policys_kl = ours["component/thought_kl/mean"], policys["component/thought_kl/mean"]
        if ours["step"] == 1:
            assert kl == pytest.approx(policys_kl, abs=1e-5)
        else:
            assert abs(kl - policys_kl) > 1e-3


@pytest.mark.parametrize(
    "filters",
    [
        ("--sampler.min-p", 0.3),
        ("--sampler.top-k", 3, "--sampler.top-p", 0.8),
        ("--loss.importance-correction", "none"),
    ],
    ids=str,
)
def test_at_the_first_step_sampler_and_policy_agree_whatever_the_filters(flags, tmp_path, filters):
    line = [*flags, "--loss.importance-correction", "token", *filters, "--max-steps", 1, "--output-dir", tmp_path]
    train(parse_train_args(list(map(str, line)))[0])
    (logged,) = training_lines(tmp_path)
    assert logged["sampler_logp_diff_max"] < 1e-4
    assert logged["importance_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert logged["importance_ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert logged["importance_capped"] == 0.0


def test_log_probs_at_two_temperatures_are_not_compared(run, flags, tmp_path):
    line = [*flags, "--loss.no-unbias-log-probabilities", "--max-steps", 1, "--output-dir", tmp_path]
    train(parse_train_args(list(map(str, line)))[0])
    (logged,) = training_lines(tmp_path)
    assert training_lines(run)[0].keys() - logged.keys() == {*COMPARED, "alarm/sampler_mismatch"}
    assert all(math.isfinite(value) for value in logged.values())


def test_a_teacher_with_more_embeddings_than_its_tokenizer_has_tokens(flags, padded_teacher, tmp_path):
    """It would nearly always write ids that no tokenizer decodes, and so that nobody can read."""
    line = [*flags, "--teacher", padded_teacher, "--dtype", "float32", "--max-steps", 2, "--output-dir", tmp_path]
    train(parse_train_args(list(map(str, line)))[0])
    tokenizer = load_tokenizer(padded_teacher)
    cut_off = [sample for sample in lines(tmp_path / "completions.jsonl") if not sample["finished"]]
    assert len(cut_off) > 4
    for sample in cut_off:  # an unknown id is no text
        assert len(tokenizer(sample["explanation"])["input_ids"]) >= sample["tokens"] - 2
    for logged in training_lines(tmp_path):
        assert logged["sampler_logp_diff_max"] < 1e-3
        assert logged["entropy"] > 1.0  # the policy has most of its probability on the unknown ids


def test_rows_of_one_s_own_are_trained_and_evaluated_on(command, tmp_path):
    """Not on the package's arithmetic: a fifth of the rows is held out, and the start and the end say so."""
    rows = tmp_path / "units.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i} m in cm?", "solution": f"{i}00"}) + "\n" for i in range(20)))
    printed = command(
        *("train", "--data.path", rows, "--max-steps", 1, "--eval-steps", 1, "--train-batch-size", 8),
        *("--num-generations", 4, "--max-completion-length", 8, "--output-dir", tmp_path / "run"),
    )
    config = load_config(tmp_path / "run" / "config.yaml")
    assert config.data == DataConfig(path=str(rows)) and config.per_device_train_batch_size == 8
    start = [line for line in printed.splitlines() if line.startswith("INFO ")][:4]
    assert start[0] == f"INFO {rows}: 20 rows"
    assert f" on 16 rows of {rows} (0 skipped), 1 steps of 2 questions x 4 completions; " in start[1]
    assert start[2] == f"INFO evaluating every 1 steps on 4 rows at the end of {rows}, which are not trained on"
    assert start[3].startswith("INFO prompts: teacher's from its folder \"You see a question")
    assert f"Held-out prompts, before and after (4 prompts at the end of {rows}, paired; " in printed
    assert {record["row"] for record in lines(tmp_path / "run" / "eval.jsonl")} == {16, 17, 18, 19}
