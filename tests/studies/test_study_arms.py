"""Arms and grids: from a file and from the command line, to fields."""

import pytest

from rlt_jax.errors import UserError
from rlt_jax.studies.study_arms import all_arms, arm_problems, nested, read_grid


def test_a_grid_of_the_command_line():
    grid = read_grid(
        (
            "loss.beta=0, 4e-2",
            "reward.reduction-kl=[[mean], [mean, max]]",
            "reward.clip_kl=None, 1",
            "data.path=[a=b.jsonl]",
            "reward.use-schulman-kl-estimation = True, false",
            "reward.normalize_kl=[[None]]",
        )
    )
    assert grid == {
        "loss.beta": (0, 0.04),
        "reward.reduction_kl": (["mean"], ["mean", "max"]),
        "reward.clip_kl": (None, 1),
        "data.path": ("a=b.jsonl",),
        "reward.use_schulman_kl_estimation": (True, False),
        "reward.normalize_kl": ([None],),
    }


WRONG = {
    "no value": ("loss.beta", "--grid loss.beta: expected FIELD=VALUES, such as loss.beta=0,0.04"),
    "an empty value": ("loss.beta=", "--grid loss.beta=: expected FIELD=VALUES"),
    "no field": ("=1", "--grid =1: expected FIELD=VALUES"),
    "an open list": ("loss.beta=[0", "--grid loss.beta=[0: expected a list such as 0,0.04, or [[mean], [mean, max]]"),
    "more than a list": ("a=[0], 1", "--grid a=[0], 1: expected a list such as 0,0.04"),
    "a field twice": ("x=1", "--grid x=1: x is given twice: give all its values at once"),
}


@pytest.mark.parametrize(("option", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_grid(option, message):
    with pytest.raises(UserError) as error:
        read_grid(("x=0", option, "!"))
    first, last = str(error.value).splitlines()
    assert first.startswith(message) and last == "--grid !: expected FIELD=VALUES, such as loss.beta=0,0.04"


def test_arms_in_both_ways_of_writing_at_every_point():
    arms = {"a": {}, "b": {"loss.beta": 1, "reward": {"reduction_kl": ["mean"]}}}
    assert list(all_arms(arms, {"temperature": (0.5, 1)})) == [
        ("a+temperature=0.5", {"temperature": 0.5}),
        ("a+temperature=1", {"temperature": 1}),
        ("b+temperature=0.5", {"loss.beta": 1, "reward.reduction_kl": ["mean"], "temperature": 0.5}),
        ("b+temperature=1", {"loss.beta": 1, "reward.reduction_kl": ["mean"], "temperature": 1}),
    ]
    assert list(all_arms({}, {"temperature": (1,)})) == [("base+temperature=1", {"temperature": 1})]


def test_fields_as_sections():
    assert nested({"a.b.c": 1, "a.b.d": [2], "e": None}) == {"a": {"b": {"c": 1, "d": [2]}}, "e": None}


def test_true_is_not_1_and_1_is_1_0():
    assert list(arm_problems({}, {"x": (1, True, 0, False)})) == []
    twice = [problem for problem in arm_problems({}, {"x": (1, 1.0)}) if "twice" in problem]
    assert twice == ["grid.x holds a value twice: give it once"]
