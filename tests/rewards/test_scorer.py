"""From completions to rewards: one whole step of the original, and rewards of a researcher's own."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.configs import LossConfig, RewardConfig
from rlt_jax.data import BESPOKE, ChatFormat, build_prompts, eos_ids, load_tokenizer
from rlt_jax.finite import NotFinite
from rlt_jax.learner.backward import make_layerwise_accumulate
from rlt_jax.learner.objective import policy_objective
from rlt_jax.learner.step import LossRows, grpo_batches, sum_gradients
from rlt_jax.losses import ORIGINAL_NAMES, group_advantages
from rlt_jax.models import Model, Work, build_model, load_model, named_tensors
from rlt_jax.rewards.logprobs import Pass
from rlt_jax.rewards.rlt import RewardInputs, Rewards, reads, rlt_reward
from rlt_jax.rewards.scorer import completion_rows, make_scorer, score_rows
from rlt_jax.segments import micro_batches
from rlt_jax.types import Completion, Row

TEMPERATURE = 0.7
GROUP = 2


@pytest.fixture(scope="module")
def step(golden):
    """The recorded step: its texts, rewards' parts and settings; the arrays are in `arrays`."""
    return json.loads((golden / "end_to_end.json").read_text())


@pytest.fixture(scope="module")
def arrays(golden):
    return np.load(golden / "end_to_end.npz")


@pytest.fixture(scope="module")
def chat(golden):
    texts = json.loads((golden / "data_cases.json").read_text())
    tokenizer = load_tokenizer(golden / "teacher")
    return ChatFormat(tokenizer, BESPOKE, texts["teacher_system_prompt"], texts["student_system_prompt"])


@pytest.fixture(scope="module")
def prompts(step, chat):
    rows = [Row(i, row["questions"], row["solutions_content"], None, None) for i, row in enumerate(step["inputs"])]
    return build_prompts(rows, chat, max_prompt_length=200).prompts


@pytest.fixture(scope="module")
def completions(step, arrays, chat, golden):
    """What a sampler would have returned: ids up to EOS, or up to the padding where there is none."""
    (end,) = eos_ids(chat.tokenizer, golden / "teacher")
    drawn = []
    for ids in step["completion_ids"]:
        real = np.array([i for i in ids if i != chat.tokenizer.pad_token_id], np.int32)
        drawn.append(Completion(real, np.zeros(len(real), np.float32), bool(real[-1] == end), 0))
    assert [completion.finished for completion in drawn] == [True, False, True, True]
    return drawn


@pytest.fixture(scope="module")
def models(golden):
    """name -> (model, parameters) of the golden teacher and student."""
    return {name: load_model(golden / name, dtype="float32") for name in ("teacher", "student")}


@pytest.fixture(scope="module")
def score(chat, golden, models):
    """score(prompts, completions, reward_fn) with the golden models at the recorded temperatures."""
    (teacher, params), (student, student_params) = models["teacher"], models["student"]
    reward = RewardConfig(unbias_student_log_probs_temp=TEMPERATURE)
    ends = eos_ids(chat.tokenizer, golden / "teacher")

    def run(prompts, completions, reward_fn):
        scorer = make_scorer(
            teacher, student, student_params, reward, sampling_temperature=TEMPERATURE, chunk=64, reward_fn=reward_fn
        )
        rows = completion_rows(prompts, completions, chat=chat, eos_ids=ends)
        return scorer.score(params, prompts, rows, tokens=3 * 192)

    return run


@pytest.fixture(scope="module")
def scored(score, prompts, completions):
    return score(prompts, completions, rlt_reward(RewardConfig()))


def test_prompts_are_the_originals(prompts, step, arrays):
    for prompt, row, ids, mask in zip(prompts, step["inputs"], arrays["prompt_ids"], arrays["prompt_mask"]):
        assert prompt.teacher_text == row["prompt"]
        assert prompt.teacher_ids.tolist() == ids[mask.astype(bool)].tolist()


def test_reward_of_fixed_completions_is_the_originals(scored, step):
    logged = step["metrics"]
    np.testing.assert_allclose(scored.rewards.reward, logged["total_teacher_likelihood_reward"], atol=1e-3)
    compared = {ours: theirs for ours, theirs in ORIGINAL_NAMES.items() if theirs in logged}
    assert len(compared) == len(scored.rewards.components) == 37
    for ours, theirs in compared.items():
        np.testing.assert_allclose(scored.rewards.components[ours], logged[theirs], atol=1e-3, err_msg=ours)
    assert [row.matched for row in scored.rows] == [True, False, True, True]


def test_advantages_are_the_originals(scored, arrays):
    advantages = group_advantages(scored.rewards.reward, GROUP)
    np.testing.assert_allclose(advantages, arrays["advantages"], atol=1e-4)


@pytest.mark.parametrize("arrangement", ["rows", "masked", "flat"])
def test_loss_kl_and_gradient_of_the_step_are_the_originals(scored, arrays, models, step, prompts, chat, arrangement):
    """From our own prompts, rewards and advantages; the original's reference log-probs and its completion mask.

    The original trains on the padding of the completion without EOS (ours does not: see test_update): that row is given
    with its padding, as if it had been sampled. What torch's embedding does then is undone here: it has no gradient at
    its padding token where that is read. So the head is untied, to tell reading from writing.
    """
    lengths = arrays["completion_mask"].sum(1)
    assert lengths.tolist() == [28, 60, 60, 38]
    ids = [
        np.concatenate([prompt.teacher_ids, row[:n]]).astype(np.int32)
        for prompt, row, n in zip(prompts, arrays["completion_ids"], lengths)
    ]
    ref = [row[:n] for row, n in zip(arrays["ref_per_token_logps"], lengths)]
    advantages = np.asarray(group_advantages(scored.rewards.reward, GROUP))
    tied, params = models["teacher"]
    model = build_model(replace(tied.config, tie_word_embeddings=False))
    params = {**params, "lm_head": params["embed_tokens"]}
    accumulate = make_layerwise_accumulate(
        model, policy_objective(LossConfig(beta=step["beta"])), temperature=step["temperature"], chunk=64
    )
    sampler_logps = [np.zeros(n, np.float32) for n in lengths]
    lie = micro_batches(ids, tokens=2 * 192, arrangement=arrangement)
    rows = LossRows(sampler_logps, advantages, ref)
    batches = grpo_batches(ids, rows, batches=lie, longest=int(lengths.max()))
    gradients, aux = sum_gradients(accumulate, params, batches)
    assert float(aux["loss"]) == pytest.approx(float(arrays["loss"]), abs=1e-5)
    assert float(aux["kl"]) == pytest.approx(step["metrics"]["kl"][0], rel=1e-4)

    named = {name: np.array(gradient) for name, gradient in named_tensors(model, gradients)}
    expected = arrays["grad_model.norm.weight"]
    np.testing.assert_allclose(named["model.norm.weight"], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    named["model.embed_tokens.weight"][chat.tokenizer.pad_token_id] = 0.0
    named["model.embed_tokens.weight"] += named.pop("lm_head.weight")
    norm = np.sqrt(sum(np.square(gradient).sum() for gradient in named.values()))
    assert norm == pytest.approx(float(arrays["grad_norm"]), rel=1e-3)


def test_own_reward_sees_texts_tokens_and_logprobs(score, prompts, completions):
    seen = []

    def reward_fn(inputs: RewardInputs) -> np.ndarray:
        seen.append(inputs)
        return np.array([len(row.explanation) for row in inputs.rows])

    scored = score(prompts, completions, reward_fn)
    assert scored.rewards.reward.dtype == np.float32 and scored.rewards.components == {}
    assert scored.rewards.reward.tolist() == [30.0, 46.0, 58.0, 13.0]
    (inputs,) = seen
    assert [prompt.row.number for prompt in inputs.prompts] == [0, 1, 2, 3]
    assert inputs.rows[1].explanation == "Add 17 and 25. The result should be 42 because"
    assert inputs.logprobs.matched.tolist() == [True, False, True, True]
    for row, mask in zip(inputs.rows, inputs.logprobs.thought_mask):
        assert mask.sum() == len(row.teacher_thought)
    assert (inputs.logprobs.student_thought_logps[inputs.logprobs.thought_mask] < 0).all()


def test_own_reward_may_return_components(score, prompts, completions):
    parts = {"shortness": np.array([0.5, 0.25, 0.0, 1.0])}
    scored = score(prompts, completions, lambda inputs: Rewards(2 * parts["shortness"], parts))
    assert scored.rewards.reward.tolist() == [1.0, 0.5, 0.0, 2.0]
    assert scored.rewards.components is parts


@pytest.mark.parametrize(
    "returned",
    [
        np.ones(3),
        np.ones((4, 1)),
        Rewards(np.ones(2), {}),
        np.float32(1.0),
    ],
    ids=["too few", "two dimensions", "too few, with components", "one for all"],
)
def test_a_reward_that_is_not_one_number_per_explanation_is_refused(score, prompts, completions, returned):
    with pytest.raises(ValueError, match="expected 4 finite numbers, one per explanation") as refusal:
        score(prompts, completions, lambda inputs: returned)
    assert str(refusal.value).startswith("your reward function ")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_named_with_its_row(score, prompts, completions, value):
    def because(inputs):
        return np.array([0.0, 1.0, value, 2.0])

    def with_component(inputs):
        return Rewards(np.ones(4, np.float32), {"style": np.array([value, 1.0, value, 2.0])})

    with pytest.raises(NotFinite) as fault:
        score(prompts, completions, because)
    number = prompts[2].row.number
    name = f"explanation 2 (row {number} of the data)"
    assert fault.value.culprit.startswith("your reward function ") and ".because returned" in fault.value.culprit
    assert fault.value.culprit.endswith(f"{value} in {name}, of 4")
    np.testing.assert_array_equal(fault.value.values["reward"], np.float32([0.0, 1.0, value, 2.0]))
    with pytest.raises(
        NotFinite, match=r"with_component returned for its component style: .* in explanation 0 .*, exp"
    ):
        score(prompts, completions, with_component)


@pytest.mark.parametrize("poisoned", ["teacher", "student"])
def test_log_probs_that_are_not_finite_are_blamed_on_the_model_and_its_tensor(
    chat, golden, models, prompts, completions, poisoned
):
    """Even where the reward reads no log-prob."""
    both = {name: (model, jax.tree.map(jnp.copy, params)) for name, (model, params) in models.items()}
    bias = both[poisoned][1]["layers"]["input_layernorm"]
    bias["weight"] = bias["weight"].at[1, 5].set(jnp.nan)
    (teacher, params), (student, student_params) = both["teacher"], both["student"]
    scorer = make_scorer(
        teacher,
        student,
        student_params,
        RewardConfig(),
        sampling_temperature=TEMPERATURE,
        chunk=64,
        reward_fn=lambda inputs: np.array([float(len(row.explanation)) for row in inputs.rows]),
        teacher_name="policy" if poisoned == "teacher" else "teacher",
    )
    rows = completion_rows(prompts, completions, chat=chat, eos_ids=eos_ids(chat.tokenizer, golden / "teacher"))
    with pytest.raises(NotFinite) as fault:
        scorer.score(params, prompts, rows, tokens=3 * 192)
    who = "policy" if poisoned == "teacher" else "student"
    assert fault.value.culprit.startswith(
        f"the {who}'s log-probs (model.layers.1.input_layernorm.weight has 1 value that is not finite): nan in "
        "explanation 0 (row 0 of the data), explanation 1 "
    )
    assert np.isnan(fault.value.values[f"{who}_logps"]).any()


def test_teacher_and_student_logprobs_come_from_their_own_sequences(scored):
    """The same thought, scored in the teacher's context and in the student's."""

    def record(calls):
        def logprobs(rows, *, wanted):
            calls.append([row.tolist() for row in rows])
            asked.append([positions.tolist() for positions in wanted])
            return Pass([np.full(len(row), float(len(calls)), np.float32) for row in rows], Work(real=len(calls)))

        return logprobs

    teacher, student, asked = [], [], []
    again = score_rows(
        scored.prompts,
        scored.rows,
        teacher_logprobs=record(teacher),
        student_logprobs=record(student),
        reward_fn=lambda inputs: inputs.logprobs.teacher_thought_logps[:, 0],
    )
    assert teacher == [[row.teacher_ids.tolist() for row in scored.rows]]
    assert student == [[row.student_ids.tolist() for row in scored.rows]]
    of_student = [[*row.student_thought.tolist(), *row.solution.tolist()] for row in scored.rows]
    assert asked == [[row.teacher_thought.tolist() for row in scored.rows], of_student]
    assert again.rewards.reward.tolist() == [1.0] * 4
    assert again.work == {"teacher": Work(real=1), "student": Work(real=1)}


def test_one_weight_counts_for_every_reduction(score, prompts, completions, scored):
    config = RewardConfig(answer_log_prob_coeff=(0.5,), kl_penalty_reward_coeff=(0.25,))
    other = score(prompts, completions, rlt_reward(config))
    parts = scored.rewards.components
    expected = 0.5 * (parts["solution_logp/mean"] + parts["solution_logp/min"])
    expected -= 0.25 * (parts["thought_kl/mean"] + parts["thought_kl/max"])
    np.testing.assert_allclose(other.rewards.reward, expected + np.array([0, -1.0, 0, 0]), atol=1e-5)


def test_settings_reach_the_reward(score, prompts, completions, scored):
    config = RewardConfig(
        answer_log_prob_coeff=(2.0,),
        kl_penalty_reward_coeff=(0.0,),
        reduction_log_prob=("max",),
        not_matched_penalty=-3.0,
    )
    other = score(prompts, completions, rlt_reward(config))
    expected = 2.0 * scored.rewards.components["solution_logp/max"] + np.array([0, -3.0, 0, 0])
    np.testing.assert_allclose(other.rewards.reward, expected, atol=1e-5)


# models that the reward does not read


def counting_passes(model: Model, name: str, seen: list[str]) -> Model:
    """The model, which notes its name in `seen` when a forward pass of it is compiled."""

    class Counting(Model):
        def hidden(self, *arguments, **named):
            seen.append(name)
            return super().hidden(*arguments, **named)

    return Counting(**vars(model))


@pytest.fixture
def passes(chat, golden, models, prompts, completions):
    """passes(reward_fn, config): which models run for it, and the rewards."""

    def run(reward_fn=None, config=RewardConfig()):  # noqa: B008
        seen: list[str] = []
        (teacher, params), (student, student_params) = models["teacher"], models["student"]
        scorer = make_scorer(
            counting_passes(teacher, "teacher", seen),
            counting_passes(student, "student", seen),
            student_params,
            config,
            sampling_temperature=TEMPERATURE,
            chunk=64,
            reward_fn=reward_fn,
        )
        rows = completion_rows(prompts, completions, chat=chat, eos_ids=eos_ids(chat.tokenizer, golden / "teacher"))
        return scorer.score(params, prompts, rows, tokens=4 * 192), sorted(set(seen))

    return run


def mean_solution_logp(inputs: RewardInputs) -> np.ndarray:
    logps = inputs.logprobs
    return (logps.solution_logps * logps.solution_mask).sum(1) / logps.solution_mask.sum(1)


def test_only_the_models_that_a_reward_reads_are_run(passes):
    undeclared, both = passes(lambda inputs: mean_solution_logp(inputs))
    of_student, alone = passes(reads("student")(mean_solution_logp))
    _, neither = passes(reads()(lambda inputs: np.array([float(len(row.explanation)) for row in inputs.rows])))
    assert (both, alone, neither) == (["student", "teacher"], ["student"], [])
    np.testing.assert_array_equal(of_student.rewards.reward, undeclared.rewards.reward)


@pytest.mark.parametrize(("model", "field"), [("teacher", "teacher_thought_logps"), ("student", "solution_logps")])
def test_log_probs_that_were_not_computed_are_refused(passes, model, field):
    other = {"teacher": "student", "student": "teacher"}[model]

    @reads(other)
    def wrong(inputs):
        return getattr(inputs.logprobs, field)[:, 0]

    with pytest.raises(ValueError, match=f'{field}: the {model}.s log-probs were not computed.*add "{model}" to its'):
        passes(wrong)


def test_without_the_teachers_term_the_rlt_reward_reads_the_student_alone(passes):
    """The reward is what it was with the teacher's pass, and no component claims to know the teacher."""
    config = RewardConfig(include_teacher_think_entropy=False)

    def with_both(inputs):  # undeclared
        return rlt_reward(config)(inputs)

    had, both = passes(with_both)
    found, alone = passes(config=config)
    assert (both, alone) == (["student", "teacher"], ["student"])
    np.testing.assert_array_equal(found.rewards.reward, had.rewards.reward)
    assert "thought_surprisal/mean" in found.rewards.components
    absent = [name for name in found.rewards.components if "thought_kl" in name]
    assert absent == [] and not {"kl_reward", "total_with_kl"} & found.rewards.components.keys()
    _, of_weight_0 = passes(config=RewardConfig(kl_penalty_reward_coeff=(0.0,)))
    assert of_weight_0 == ["student", "teacher"]  # a component all the same
