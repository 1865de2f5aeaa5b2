"""Arms of a study with known numbers, for the tests of their comparison."""

import numpy as np

from rlt_jax.report.paired import paired_change
from rlt_jax.studies.comparison import Evaluations

LOGP = "component/solution_logp/mean"


def run(logp: list[float], *, seed: int = 1, paired: dict | None = None, **others: list[float]) -> Evaluations:
    """A run of four steps, evaluated at 0, 2 and 4."""
    values = {name: dict(zip((0, 2, 4), series)) for name, series in {LOGP: logp, **others}.items()}
    return Evaluations(4, values, paired or {}, seed)


RUNS = {
    "paper": [
        run([-1.0, -0.7, -0.5], copy_rate=[0.0, 0.1, 0.2], trace_copy_rate=[0.25] * 3),
        run([-2.0, -1.0, -0.5], seed=2, copy_rate=[0.1, 0.1, 0.1], trace_copy_rate=[0.25] * 3),
        run([-1.5, -1.0, -0.5], seed=3, copy_rate=[0.0, 0.0, 0.0], trace_copy_rate=[0.25] * 3),
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
