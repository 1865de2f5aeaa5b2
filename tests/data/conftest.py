"""The golden tokenizer and system prompts, and the recorded cases."""

import json
from pathlib import Path

import pytest

from rlt_jax.data import BESPOKE, ChatFormat, load_tokenizer


@pytest.fixture(scope="session")
def tokenizer(golden: Path):
    return load_tokenizer(golden / "teacher")


@pytest.fixture(scope="session")
def data_cases(golden: Path) -> dict:
    return json.loads((golden / "data_cases.json").read_text())


@pytest.fixture(scope="session")
def reward_cases(golden: Path) -> dict[str, dict]:
    return {case["id"]: case for case in json.loads((golden / "reward_cases.json").read_text())["cases"]}


@pytest.fixture(scope="session")
def chat(tokenizer, data_cases) -> ChatFormat:
    """The chat format that the golden cases were recorded with."""
    return ChatFormat(tokenizer, BESPOKE, data_cases["teacher_system_prompt"], data_cases["student_system_prompt"])
