"""Measured peaks against budget and plan."""

from rlt_jax.device.budget import BudgetWatch, plan_and_measured


def peaks(**phases: float) -> dict[str, float]:
    return {"reward": 1.0, "seconds/update": 80.0} | {f"memory/peak_gpu_gb/{k}": v for k, v in phases.items()}


def test_a_phase_near_the_budget_is_said_once():
    watch = BudgetWatch(85.0)
    (warning,) = watch(peaks(generate=62.0, update=77.0))
    assert warning == "update took 77.0 GB of GPU memory, 91% of the budget of 85 GB"
    assert list(watch(peaks(generate=62.0, update=77.5))) == []
    assert len(list(watch(peaks(generate=62.0, update=78.3)))) == 1  # a GB more
    assert len(list(watch(peaks(generate=80.0, update=77.0)))) == 1  # another phase


def test_below_nine_tenths_nothing_is_said():
    assert list(BudgetWatch(85.0)(peaks(update=76.4))) == []
    assert list(BudgetWatch(None)(peaks(update=1000.0))) == []


def test_plan_and_measured_in_one_line():
    (line,) = plan_and_measured(
        {"generate": 63.2e9, "score": 38.9e9, "update": 76.4e9}, peaks(generate=62.5, update=76.3)
    )
    assert line == (
        "GPU, GB, measured in the first step: generate 62.5 (63.2 planned, -1.1%), update 76.3 (76.4 planned, -0.1%)"
    )


def test_without_measurements_there_is_no_line():
    assert list(plan_and_measured({"update": 76.4e9}, {"reward": 1.0})) == []
