"""What a run says and keeps of a reward function of the user's own."""

import hashlib
from dataclasses import replace

import pytest

from rlt_jax.configs import PRESETS, RewardConfig
from rlt_jax.errors import UserError
from rlt_jax.rewards import by_name
from rlt_jax.runs.own_reward import keep_copy, kept_reward, pinned, reward_lines

TINY = PRESETS["tiny"]
TEXT = """
from rlt_jax import RewardConfig
def plain(inputs, *, weight: float = 1.0): ...
def with_settings(inputs, *, config: RewardConfig): ...
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(by_name, "_loaded", {})
    path = tmp_path / "mine.py"
    path.write_text(TEXT)
    return path


def test_the_paper_s_reward_is_left_as_it_is(tmp_path):
    assert pinned(TINY) is TINY and reward_lines(TINY.reward) == []
    keep_copy(TINY.reward, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_start_names_the_function_and_what_has_no_effect(file):
    reward = RewardConfig(fn=f"{file}:plain", options={"weight": 2.0}, copy_coeff=1.0, clip_kl=None)
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    assert pinned(replace(TINY, reward=reward)).reward == replace(reward, fn_sha256=sha256)
    function, unused = reward_lines(replace(reward, unbias_student_log_probs_temp=1.0))
    assert function == (
        f"the reward is your function {file}:plain, options {{weight: 2.0}} (SHA-256 of its file {sha256[:16]}...)"
    )
    assert unused == "no effect, as it has no parameter `config: RewardConfig`: reward.clip_kl, reward.copy_coeff"
    assert len(reward_lines(replace(reward, fn=f"{file}:with_settings", options={}))) == 1


def test_a_run_keeps_every_file_that_it_used(file, tmp_path):
    run, texts = tmp_path / "run", [TEXT, f"{TEXT}# second", f"{TEXT}# third"]
    run.mkdir()
    rewards = []
    for text in texts:
        file.write_text(text)
        rewards.append(pinned(replace(TINY, reward=RewardConfig(fn=f"{file}:plain"))).reward)
        for _ in range(2):  # a resumed run keeps it again
            keep_copy(rewards[-1], run)
    file.unlink()
    by_name._loaded.clear()  # as in another process
    copies = {path.read_text() for path in (run / "reward").iterdir()}
    assert copies == set(texts) and (run / "reward" / "mine.py").read_text() == texts[-1]
    for reward, text in zip(rewards, texts):
        assert kept_reward(reward, run).source.decode() == text
    (run / "reward" / "mine.py").write_text("changed")
    by_name._loaded.clear()
    with pytest.raises(UserError, match="expected a Python file, but there is nothing"):
        kept_reward(rewards[-1], run)
