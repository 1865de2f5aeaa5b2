"""Arms of a study with known numbers, for the tests of their comparison."""

import numpy as np

from rlt_jax.report.paired import paired_change
from rlt_jax.studies.comparison import Arm, Evaluations, compare

LOGP = "component/solution_logp/mean"


def run(
    logp: list[float],
    *,
    seed: int = 1,
    paired: dict | None = None,
    seconds: float | None = None,
    **others: list[float],
) -> Evaluations:
    """A run of four steps, evaluated at 0, 2 and 4."""
    values = {name: dict(zip((0, 2, 4), series)) for name, series in {LOGP: logp, **others}.items()}
    return Evaluations(4, values, paired or {}, seed, step_seconds=seconds)


def asked(table: np.ndarray, *, metric: str = LOGP, seeds: tuple[int, ...] = (1, 2, 3)) -> list[Evaluations]:
    """Runs whose last values of a metric are those of a table, seeds by questions."""
    return [
        Evaluations(4, {metric: {0: 0.0, 4: float(row.mean())}}, {}, seed, {metric: dict(enumerate(row.tolist()))})
        for seed, row in zip(seeds, table, strict=True)
    ]


def study(**differences: np.ndarray) -> dict[str, Arm]:
    """The comparison of a first arm of zeros with arms that exceed it by these tables, seeds by questions."""
    first = np.zeros_like(next(iter(differences.values())))
    runs = {"first": asked(first), **{name: asked(table) for name, table in differences.items()}}
    return compare(runs, dict.fromkeys(runs, 3))


RUNS = {
    "paper": [
        run([-1.0, -0.7, -0.5], seconds=1.0, copy_rate=[0.0, 0.1, 0.2], trace_copy_rate=[0.25] * 3),
        run([-2.0, -1.0, -0.5], seed=2, seconds=2.0, copy_rate=[0.1, 0.1, 0.1], trace_copy_rate=[0.25] * 3),
        run([-1.5, -1.0, -0.5], seed=3, seconds=3.0, copy_rate=[0.0, 0.0, 0.0], trace_copy_rate=[0.25] * 3),
    ],
    "no-kl": [
        run(
            [-1.0, -1.0, -1.25],
            paired={LOGP: paired_change(np.array([-1.0, -0.5, -1.5]), np.array([-1.25, -1.0, -1.5]))},
            **{"completion_length/mean": [10.0, 12.0, 15.0]},
        )
    ],
    "none yet": [],
}
PLANNED = {"paper": 3, "no-kl": 2, "none yet": 2}
