"""A run has a reference where something reads it, and only there."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from rlt_jax.configs import PRESETS, MemoryConfig
from rlt_jax.device.placement import on_host
from rlt_jax.errors import UserError
from rlt_jax.models import load_model
from rlt_jax.rewards.rlt import BOTH
from rlt_jax.runs.reference import load_reference, unused_settings
from rlt_jax.runs.resume import models_of

TINY = PRESETS["tiny"]


def test_the_reference_must_be_of_the_teachers_architecture(golden, tmp_path):
    teacher, params = load_model(golden / "teacher", dtype="float32")
    config = replace(TINY, reference=str(golden / "student"))
    with pytest.raises(UserError) as refusal:
        load_reference(config, teacher, params)
    assert "num_hidden_layers=3 (teacher: 2)" in str(refusal.value)
    assert str(refusal.value).endswith("or leave out the flag to use the teacher itself")
    longer = shutil.copytree(golden / "teacher", tmp_path / "longer")  # what computation does not depend on may differ
    values = json.loads((longer / "config.json").read_text())
    (longer / "config.json").write_text(json.dumps({**values, "max_position_embeddings": 9999}))
    reference = load_reference(replace(TINY, reference=str(longer)), teacher, params)
    assert reference["norm"]["weight"].shape == (128,)


@pytest.mark.parametrize("place", ["device", "host"])
def test_the_reference_is_a_copy_of_the_teacher_where_the_configuration_keeps_it(golden, place):
    """The policy's arrays are donated: what shares memory with them would change with them."""
    teacher, params = load_model(golden / "teacher", dtype="float32")
    config = replace(TINY, teacher=str(golden / "teacher"), memory=MemoryConfig(frozen=place))
    reference = load_reference(config, teacher, params)
    before = np.asarray(reference["norm"]["weight"]).copy()
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(params)
    np.testing.assert_array_equal(np.asarray(reference["norm"]["weight"]), before)
    assert on_host(reference) == (place == "host")
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(reference))


def changed(beta: float = 0.0, reward: dict | None = None, ref: dict | None = None, **settings):
    return replace(
        TINY,
        loss=replace(TINY.loss, beta=beta),
        reward=replace(TINY.reward, **reward or {}),
        ref=replace(TINY.ref, **ref or {}),
        **settings,
    )


FROM_REFERENCE = {"use_reference_teacher_model": True}


def test_there_is_a_reference_where_the_loss_or_the_reward_reads_it():
    assert changed(0.04).uses_reference() and changed(0.04).uses_reference(())
    assert not changed().uses_reference()
    own = changed(reward=FROM_REFERENCE, reference="org/other")
    assert own.uses_reference() and own.uses_reference({"teacher"}) and not own.uses_reference({"student"})
    assert not changed(reward={**FROM_REFERENCE, "include_teacher_think_entropy": False}).uses_reference()
    assert own.own_reference == own.reference_model == "org/other"
    unused = changed(reference="org/other")
    assert unused.own_reference is None and unused.reference_model == TINY.teacher
    assert "reference" in models_of(own) and models_of(unused) == {"teacher": TINY.teacher, "student": TINY.student}


def test_settings_without_effect_are_named():
    def named(config, reads=BOTH):
        return unused_settings(config, used=config.uses_reference(reads), reads=reads)

    moved = {"ref_model_sync_steps": 8, "ref_model_mixup_alpha": 0.5}
    assert named(changed(0.04, reference="org/other", ref=moved)) == named(changed()) == []
    assert named(changed(ref={"sync_ref_model": False})) == []
    assert named(changed(reference="org/other", ref=moved)) == [
        "reference=org/other",
        "ref.ref_model_sync_steps=8",
        "ref.ref_model_mixup_alpha=0.5",
    ]
    (one,) = named(changed(0.04, reward=FROM_REFERENCE), reads=frozenset({"student"}))
    assert one.startswith("reward.use_reference_teacher_model (the reward does not read")
