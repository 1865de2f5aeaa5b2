"""TRL's side of `trl_step.py`: GRPOTrainer with the RLT reward as a reward function, timed by phase.

    python benchmarks/trl_side.py SPEC.json OUT.json

Started by `trl_step.py`, which writes SPEC.json and the files that it names; needs trl 1.16, torch, transformers, and
nothing of rlt_jax. Of what ours does, everything is asked of TRL too (reference log-probs, teacher and student in the
reward), and nothing that ours does not do (old log-probs for vLLM's importance weights, unless SPEC asks for them).
Phases, in seconds that do not count twice:
  generate: vLLM woken, completions drawn, vLLM asleep; or transformers' own generation
  sync: weights into vLLM
  score: reference log-probs and the reward function, which runs teacher and student
  update: the rest of a step: forward and backward passes, clipping, AdamW
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch


class Clock:
    """Seconds by phase. What a phase inside another takes counts for the inner one alone."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, float, float]] = []  # (phase, begin, end), seconds since the epoch, in order
        self._open: list[str] = []
        self._mark = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside for a phase; the GPU's work ends with it."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        self._cut()
        self._open.append(name)

    def end(self) -> None:
        self._cut()
        self._open.pop()

    def seconds(self, begin: float, end: float) -> dict[str, float]:
        """Seconds of each phase between two times."""
        total: defaultdict[str, float] = defaultdict(float)
        for name, first, last in self.pieces:
            if begin <= first and last <= end:
                total[name] += last - first
        return dict(total)

    def _cut(self) -> None:
        now = settled()
        if self._open:
            self.pieces.append((self._open[-1], self._mark, now))
        self._mark = now


def settled() -> float:
    """The time, seconds since the epoch, once the GPU has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


def rlt_reward(
    solution: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor, matched: torch.Tensor, *, weights: dict
) -> torch.Tensor:
    """The RLT reward with the default reductions: mean and min of the solution's log-probs, mean and max of the KL.

    Args:
      solution: f32[B, M] nats, the student's log-probs of the solution's tokens.
      student, teacher: f32[B, K] nats, log-probs of the explanation's tokens.
      matched: bool[B], whether the explanation's tags are closed.
      weights: `solution` and `kl`, two numbers each, and `not_matched`, which is added where tags are not closed.
    Returns:
      f32[B].
    """
    kl = teacher - student
    mean, least = weights["solution"]
    kl_mean, kl_most = weights["kl"]
    reward = mean * solution.mean(1) + least * solution.amin(1) - kl_mean * kl.mean(1) - kl_most * kl.amax(1)
    return reward + weights["not_matched"] * ~matched


class Reward:
    """The reward function that TRL calls. Counts the tokens that each model reads."""

    __name__ = "rlt"  # TRL names its metrics after it

    def __init__(self, spec: dict, prompts: list[dict]) -> None:
        self.spec, self.prompts = spec, prompts
        self.trainer: Any = None  # set once it exists
        self.student: Any = None
        self.steps: list[dict] = []  # of each call: tokens of the teacher's and the student's rows, rewards

    def __call__(self, prompts: list, completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float]:
        rows = [self.prompts[i] for i in row]
        teacher_ids = [prompt["teacher_ids"] + ids for prompt, ids in zip(rows, completion_ids)]
        student_ids = [
            prompt["student_prefix_ids"] + ids + prompt["closing_ids"] for prompt, ids in zip(rows, completion_ids)
        ]
        length, closing = len(completion_ids[0]), len(rows[0]["closing_ids"])
        teacher = self.log_probs(self.trainer.model, teacher_ids, length)
        student = self.log_probs(self.student, student_ids, length + closing)
        places = [length + i for i in rows[0]["closing_solution"]]
        matched = torch.zeros(len(rows), dtype=torch.bool, device=teacher.device)  # no completion ends its tag
        rewards = rlt_reward(
            student[:, places], student[:, :length], teacher, matched, weights=self.spec["reward"]
        ).tolist()
        self.steps.append(
            {
                "teacher": sum(map(len, teacher_ids)),
                "student": sum(map(len, student_ids)),
                "rewards": rewards,
                "rows": list(row),
                "completion_ids": completion_ids if self.spec["keep_completions"] else [],
            }
        )
        return rewards

    def log_probs(self, model: Any, ids: list[list[int]], keep: int) -> torch.Tensor:
        """Log-probs f32[B, keep] of the last tokens, by TRL's own forward pass, which has no logits in full."""
        from trl.models.utils import disable_gradient_checkpointing

        together = torch.tensor(ids, device=self.trainer.accelerator.device)  # fails unless all have one length
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(model, self.trainer.args.gradient_checkpointing_kwargs),
        ):
            found, _, _ = self.trainer._get_per_token_logps_and_entropies(
                model, together, torch.ones_like(together), keep, batch_size=self.spec["score_batch"]
            )
        return found.float()


def main(spec_file: Path, out: Path) -> None:
    """Train for some steps and write what was measured."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    spec = json.loads(spec_file.read_text())
    prompts = [json.loads(line) for line in Path(spec["prompts"]).read_text().splitlines()]
    liger = spec["liger"] and spec["gpu"] and find_spec("liger_kernel") is not None
    bf16 = spec["dtype"] == "bfloat16"
    config = GRPOConfig(
        output_dir=str(out.with_suffix("")),
        max_steps=spec["steps"],
        per_device_train_batch_size=spec["micro_batch"],
        gradient_accumulation_steps=spec["completions"] // spec["micro_batch"],
        num_generations=spec["group"],
        max_completion_length=spec["completion"],
        temperature=spec["temperature"],
        generation_kwargs={"ignore_eos": True} if spec["vllm"] else None,
        use_vllm=spec["vllm"],
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=spec["vllm_share"],
        vllm_enable_sleep_mode=True,
        vllm_max_model_length=spec["prompt"] + spec["completion"],
        vllm_importance_sampling_correction=spec["importance_correction"],
        beta=spec["beta"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        loss_type="grpo",
        use_bias_correction_kl=False,
        model_init_kwargs={"dtype": spec["dtype"]},
        bf16=bf16,
        use_cpu=not spec["gpu"],
        gradient_checkpointing=True,
        use_liger_kernel=liger,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    reward = Reward(spec, prompts)
    trainer = GRPOTrainer(
        model=spec["model"],
        args=config,
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": one["text"], "row": i} for i, one in enumerate(prompts)]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(spec["model"], padding_side="left"),
    )
    student = AutoModelForCausalLM.from_pretrained(spec["student"], dtype=spec["dtype"], trust_remote_code=False)
    reward.student = student.to(trainer.accelerator.device).eval().requires_grad_(False)
    add_fused_lm_head(reward.student, temperature=spec["student_temperature"])
    reward.trainer = trainer

    clock = Clock()
    counted: list[dict[str, int]] = []
    updated: list[torch.Tensor] = []  # of each micro-batch, the tokens that its update read
    ends: list[float] = []  # of the steps; the first is the start of training
    known = {tuple(one["teacher_ids"]) for one in prompts}

    def timed(name: str, call: Any) -> Any:
        def inside(*args: Any, **kwargs: Any) -> Any:
            with clock.phase(name):
                return call(*args, **kwargs)

        return inside

    generate = timed("generate", trainer._generate_single_turn)

    def generate_and_count(prompt_ids: list, *args: Any, **kwargs: Any) -> Any:
        if unknown := [ids for ids in prompt_ids if tuple(ids) not in known]:
            raise SystemExit(f"TRL reads a prompt of {len(unknown[0])} tokens that is none of {spec['prompts']}")
        result = generate(prompt_ids, *args, **kwargs)
        lengths = [len(ids) for ids in result[0]]
        if set(lengths) != {spec["completion"]}:
            raise SystemExit(f"TRL wrote completions of {min(lengths)} to {max(lengths)} tokens: expected no EOS")
        counted.append({"prompt": sum(map(len, prompt_ids)), "completion": sum(lengths)})
        return result

    compute_loss = trainer.compute_loss

    def loss_and_count(model: Any, inputs: dict, *args: Any, **kwargs: Any) -> Any:
        updated.append(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
        return compute_loss(model, inputs, *args, **kwargs)

    class Steps(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(settled())

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.begin("update")

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.end()
            ends.append(settled())

    trainer._generate_single_turn = generate_and_count
    trainer._generate_and_score_completions = timed("score", trainer._generate_and_score_completions)
    trainer.compute_loss = loss_and_count
    if spec["vllm"]:
        trainer.vllm_generation.sync_weights = timed("sync", trainer.vllm_generation.sync_weights)
    trainer.add_callback(Steps())
    trainer.train()

    per_step = len(updated) // spec["steps"]
    steps = []
    for i, (begin, end) in enumerate(pairwise(ends)):
        tokens = counted[i] | {name: reward.steps[i][name] for name in ("student", "teacher")}
        tokens["update"] = int(sum(updated[i * per_step : (i + 1) * per_step]))
        steps.append({"tokens": tokens, "seconds": clock.seconds(begin, end) | {"step": end - begin}})
    packages = {name: version(name) for name in ("trl", "torch", "transformers")}
    packages |= {"vllm": version("vllm")} if spec["vllm"] else {}
    packages |= {"liger-kernel": version("liger-kernel")} if liger else {}
    measured = {"packages": packages, "steps": steps, "pieces": clock.pieces, "reward": reward.steps}
    out.write_text(json.dumps(measured))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
