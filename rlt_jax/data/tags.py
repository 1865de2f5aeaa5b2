"""The tags around thought, solution and explanation in a text.

Departures from the original:
- One record of six tags instead of nine columns per row: all rows of a run share their tags.
"""

from dataclasses import asdict, dataclass

from rlt_jax.types import TagFormat


@dataclass(frozen=True)
class Tags:
    """The start and end tag of each part of a text."""

    thought_start: str  # the student's thinking
    thought_end: str
    solution_start: str  # the final solution, in the teacher's prompt and in the student's answer
    solution_end: str
    explanation_start: str  # the teacher's explanation, which becomes the student's thinking
    explanation_end: str

    def fill(self, template: str) -> str:
        """`template` with `{thought_start}`, `{solution_end}`, ... replaced by the tags; other braces stay."""
        for name, tag in asdict(self).items():
            template = template.replace("{" + name + "}", tag)
        return template


BESPOKE = Tags(
    thought_start="<|begin_of_thought|>",
    thought_end="<|end_of_thought|>",
    solution_start="<|begin_of_solution|>",
    solution_end="<|end_of_solution|>",
    explanation_start="<|begin_of_explanation|>",
    explanation_end="<|end_of_explanation|>",
)

R1 = Tags(
    thought_start="<think>",
    thought_end="</think>",
    solution_start="<solution>",
    solution_end="</solution>",
    explanation_start="<explanation>",
    explanation_end="</explanation>",
)


def tags_of(tag_format: TagFormat) -> Tags:
    """The tags of a format."""
    match tag_format:
        case "bespoke":
            return BESPOKE
        case "r1":
            return R1
