"""The README.md of a trained model's folder: what it is, how it is asked, how it was trained."""

from rlt_jax.data.chat_format import GAP, PADDING
from rlt_jax.data.model_record import RECORD_FILE, ModelRecord, Training, filled_chat
from rlt_jax.data.tags import tags_of

CARD_FILE = "README.md"

_ROLES = {
    "teacher": (
        "This model is a teacher in the sense of Reinforcement-Learned Teachers (arXiv 2506.08388). It sees a question "
        "together with its solution, and writes the explanation from which a student would find the solution."
    ),
    "student": (
        "This model is a student in the sense of Reinforcement-Learned Teachers (arXiv 2506.08388). It sees a "
        "question, and writes its thought and then the solution."
    ),
}
_COMMANDS = {
    "teacher": (
        "It explains the rows of a data set, which are then one to train a student on:",
        "python -m rlt_jax.generate --teacher FOLDER --data.path ROWS --out taught.jsonl",
    ),
    "student": (
        "It answers the questions of a test set:",
        "python -m rlt_jax.evaluate --model FOLDER --data.path QUESTIONS --out answers.jsonl",
    ),
}
_STEPS = {
    "sft": "supervised fine-tuning (`rlt_jax.sft`)",
    "train": "GRPO on the reward of RLT (`rlt_jax.train`)",
}


def model_card(record: ModelRecord) -> str:
    """A model card in Markdown, with the front matter that the Hugging Face hub reads."""
    intro, command = _COMMANDS[record.role]
    parts = [
        _front_matter(record),
        f"# A {record.role} trained with rlt_jax",
        _ROLES[record.role],
        "## How to ask it",
        _asking(record),
        _indented(_example(record)),
        f"It ends with {_either(record.end_tokens)}. Its tags are those of the format `{record.tags}`.",
        "## With rlt_jax",
        intro,
        _indented(command),
        f"Tags and prompt come from `{RECORD_FILE}` in the folder; other ones are refused.",
        "## How it was trained",
        "\n".join(f"{i}. {_training(training)}" for i, training in enumerate(record.training, start=1)),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(record: ModelRecord) -> str:
    from huggingface_hub import ModelCardData  # here, to keep the package quick to import

    first = record.training[0] if record.training else None
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=first.base if first is not None and first.base_on_hub else None,
        tags=["rlt_jax", f"rlt-{record.role}"],
    )
    return f"---\n{data.to_yaml()}\n---"


def _asking(record: ModelRecord) -> str:
    if record.role == "teacher":
        return (
            "QUESTION and SOLUTION stand for yours. Give it the text up to EXPLANATION, with the blank line before it; "
            "it writes the rest."
        )
    system = (
        "" if record.prompt is not None else " SYSTEM PROMPT stands for a row's own: those it was trained on differ."
    )
    return f"QUESTION stands for yours. Give it the text up to THOUGHT, with the blank line before it.{system}"


def _example(record: ModelRecord) -> str:
    tags = tags_of(record.tags)
    solution = tags.solution_start + "SOLUTION" + tags.solution_end
    if record.role == "teacher":
        before, after = solution + GAP + tags.explanation_start, tags.explanation_end
        answer = before + PADDING + "EXPLANATION" + PADDING + after
    else:
        gap = GAP if record.student_gap == "blank-line" else ""
        answer = tags.thought_start + PADDING + "THOUGHT" + PADDING + tags.thought_end + gap + solution
    if record.prompt is None:
        system = "SYSTEM PROMPT"
    else:  # a row's own is used as it is
        system = record.prompt if record.prompt_of_rows else tags.fill(record.prompt)
    return filled_chat(record.chat, system=system, question="QUESTION", answer=answer)


def _training(training: Training) -> str:
    student = "" if training.student is None else f", with the student `{training.student}`"
    steps = _STEPS[training.command]
    if training.reward is not None:
        steps = f"GRPO on the reward of the function `{training.reward}` (`rlt_jax.train`)"
    return (
        f"{steps} of `{training.base}`{student}: {training.steps} steps on `{training.data}` "
        f"({training.split}), rlt_jax {training.version}"
    )


def _either(tokens: tuple[str, ...]) -> str:
    return " or ".join(f"`{token}`" for token in tokens)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.rstrip("\n").split("\n"))
