"""Metrics of what a step computed."""

import jax
import jax.numpy as jnp
import pytest

from rlt_jax.device.peaks import PEAKS, Peak
from rlt_jax.models import Work, load_model
from rlt_jax.runs import work as module
from rlt_jax.runs.work import Meter, attention_metrics, by_phase, kernels, open_meter, tokens_line

TEACHER, STUDENT = Work(100, 80, 30, 6, 8, 16), Work(50, 64, 0, 4, 4, 8)
REFERENCE, UPDATE = Work(100, 96, 30, 6, 8, 16), Work(100, 88, 30, 18, 24, 48)
ALL = {"teacher": TEACHER, "student": STUDENT, "reference": REFERENCE, "update": UPDATE}


def test_tokens_of_phases_and_passes():
    metrics = Meter("xla", None).metrics(ALL)
    assert {name: value for name, value in metrics.items() if "_computed" in name} == {
        "tokens/score_computed": 240,
        "tokens/score_teacher_computed": 80,
        "tokens/score_student_computed": 64,
        "tokens/score_reference_computed": 96,
        "tokens/update_computed": 88,
    }
    assert (metrics["tokens/score_real"], metrics["tokens/score_shared"]) == (250, 60)
    assert (metrics["tokens/update_real"], metrics["tokens/update_shared"]) == (100, 30)


def test_passes_that_are_not_made_are_absent():
    assert by_phase({"update": UPDATE}) == {"update": UPDATE} and by_phase({}) == {}
    assert not [name for name in Meter("xla", None).metrics({"update": UPDATE}) if "score" in name]
    alone = Meter("xla", None).metrics({"student": STUDENT, "update": UPDATE})
    assert not [name for name in alone if "teacher" in name or "reference" in name]
    assert alone["tokens/score_real"] == alone["tokens/score_student_real"] == 50


def test_seconds_at_the_peak():
    assert Meter("cudnn", None).at_peak(ALL) == {}
    assert Meter("cudnn", Peak(4.0, 2.0)).at_peak(ALL) == {
        "mfu": {"score": 8.0, "update": 9.0},
        "mfu_unshared": {"score": 10.0, "update": 12.0},
        "mfu_full": {"score": 10.0, "update": 12.0},
    }
    assert Meter("cudnn", Peak(4.0, None)).at_peak({"update": UPDATE}) == {"mfu_full": {"update": 12.0}}


@pytest.mark.parametrize(
    ("kernel", "fused", "flat", "flash3"),
    [("xla", 0, 0, 0), ("cudnn (one row a sequence)", 1, 0, 0), ("cudnn", 1, 1, 0), ("flash-attn3", 1, 1, 1)],
)
def test_attention_as_numbers(kernel, fused, flat, flash3):
    expected = {"attention/fused": fused, "attention/flat": flat, "attention/flash3": flash3}
    assert attention_metrics(kernel) == expected


def test_the_peak_counts_for_16_bits_alone(golden, monkeypatch):
    """The table has products of 16-bit numbers; a CPU is not in it."""
    model, params = load_model(golden / "teacher", dtype="float32")
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert open_meter(model, halves) == Meter("xla", None)
    monkeypatch.setitem(PEAKS, jax.local_devices()[0].device_kind, Peak(2e12, 1e12))
    assert open_meter(model, halves).peak == (2e12, 1e12) and open_meter(model, params).peak is None


def test_each_model_has_the_attention_that_suits_it(golden, monkeypatch):
    model, _ = load_model(golden / "teacher", dtype="float32")
    monkeypatch.setattr(module, "kernel_name", lambda dtype, head_dim: f"{dtype} {head_dim}")
    size = model.config.head_dim
    assert kernels("bfloat16", teacher=model, student=None) == {"teacher": f"bfloat16 {size}"}
    assert list(kernels("bfloat16", teacher=model, student=model)) == ["teacher", "student"]


def test_words():
    assert tokens_line(Work(12345, 6000, 7000)) == (
        "12,345 tokens scored: 7,000 shared ones not again, 6,000 computed with 655 of padding"
    )
