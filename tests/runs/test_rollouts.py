"""Draws on disk: the same completions back, another key or a damaged file drawn again, old ones removed."""

import jax.numpy as jnp
import numpy as np
import pytest

from rlt_jax.errors import UserError
from rlt_jax.runs.rollouts import Rollouts, read_rollout, write_rollout
from rlt_jax.types import Completion, Request

WEIGHTS = {"w": jnp.arange(4.0)}
REQUESTS = [Request(np.arange(3, dtype=np.int32), (1, 2)), Request(np.arange(5, dtype=np.int32), (3, 4))]


def drawn(version: int = 0) -> list[tuple[Completion, ...]]:
    rng = np.random.default_rng(version)

    def one() -> Completion:
        count = int(rng.integers(1, 6))
        logps = rng.normal(size=count).astype(np.float32)
        logps[0] = np.nan  # as vLLM's under a filter
        return Completion(rng.integers(0, 99, count).astype(np.int32), logps, bool(rng.integers(2)), version)

    return [(one(), one()) for _ in REQUESTS]


def flat(groups) -> list[tuple]:
    return [
        (one.token_ids.tolist(), one.logps.tobytes(), one.finished, one.weight_version)
        for group in groups
        for one in group
    ]


def never():
    raise AssertionError("drawn again")


def test_what_is_drawn_is_on_disk_and_is_not_drawn_again(tmp_path):
    rollouts = Rollouts(tmp_path / "rollouts", "settings")
    first = rollouts.drawn_once("7", REQUESTS, WEIGHTS, drawn)
    assert flat(first) == flat(drawn())
    again = rollouts.drawn_once("7", REQUESTS, WEIGHTS, never)
    assert flat(again) == flat(first) and [len(group) for group in again] == [2, 2]
    assert again[0][0].token_ids.dtype == np.int32 and again[0][0].logps.dtype == np.float32
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["7.safetensors"]


@pytest.mark.parametrize("other", ["weights", "settings", "seeds", "prompt", "name"])
def test_another_weight_setting_seed_or_prompt_is_another_draw(tmp_path, other):
    Rollouts(tmp_path / "rollouts", "settings").drawn_once("7", REQUESTS, WEIGHTS, drawn)
    requests, weights, name, settings = list(REQUESTS), WEIGHTS, "7", "settings"
    if other == "weights":
        weights = {"w": jnp.arange(4.0).at[2].set(2.0000002)}
    elif other == "settings":
        settings = "others"
    elif other == "seeds":
        requests[1] = Request(REQUESTS[1].prompt_ids, (3, 5))
    elif other == "prompt":
        requests[0] = Request(np.array([0, 1, 3], np.int32), (1, 2))
    else:
        name = "8"
    groups = Rollouts(tmp_path / "rollouts", settings).drawn_once(name, requests, weights, lambda: drawn(1))
    assert flat(groups) == flat(drawn(1))


def test_no_damage_is_used(tmp_path, logged):
    """Every byte of a small file, changed: the same completions, or None with a line in the log."""
    path = tmp_path / "1.safetensors"
    completions = [one for group in drawn() for one in group]
    write_rollout(path, completions, key="k")
    data, expected = path.read_bytes(), flat([completions])
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        logged.clear()
        read = read_rollout(path, key="k")
        assert read is None or flat([read]) == expected
    for size in (0, 1, 8, 100, len(data) - 1):
        path.write_bytes(data[:size])
        logged.clear()
        assert read_rollout(path, key="k") is None and "is damaged" in logged.text
    path.unlink()
    path.mkdir()
    assert read_rollout(path, key="k") is None


def test_no_completions_and_no_file(tmp_path):
    assert read_rollout(tmp_path / "1.safetensors") is None
    write_rollout(tmp_path / "1.safetensors", [], key="k")
    assert read_rollout(tmp_path / "1.safetensors", key="k") == []


def test_draws_that_a_checkpoint_has_used_are_removed(tmp_path):
    rollouts = Rollouts(tmp_path / "rollouts", "s")
    rollouts.drop(until=3)  # there is no folder yet
    for name in ("1", "2", "2-eval", "3", "3-eval", "4"):
        rollouts.drawn_once(name, REQUESTS, WEIGHTS, drawn)
    (tmp_path / "rollouts" / ".5.safetensors").write_bytes(b"half")
    (tmp_path / "rollouts" / "notes.txt").write_text("somebody's own")
    rollouts.drop(until=3)  # the evaluation after step 3 is not in its checkpoint
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == [
        *("3-eval.safetensors", "4.safetensors", "notes.txt")
    ]


def test_a_folder_that_cannot_be_written_is_refused_with_words(tmp_path):
    (tmp_path / "rollouts").write_text("")
    with pytest.raises(UserError, match="expected a run folder that can be written"):
        Rollouts(tmp_path / "rollouts", "s").drawn_once("1", REQUESTS, WEIGHTS, drawn)
