"""Plan how much memory a training run needs and whether it fits: `python -m rlt_jax.plan`. Downloads no weights.

On a machine with a GPU, its size is read and the run's programs are compiled for it; without one, the figures are those
of the ledger's formulas (`planner/ledger.py`).
"""

import logging
import sys
from functools import partial

from rich import get_console

from rlt_jax.configs import PlanOptions, TrainConfig, parse_plan_args, run_or_print
from rlt_jax.errors import command
from rlt_jax.planner.report import make_report
from rlt_jax.planner.tables import report_json, show
from rlt_jax.report.json_text import json_text
from rlt_jax.runs.chats import show_chat
from rlt_jax.runs.start_check import start_checks
from rlt_jax.terminal import VisibleFormatter

log = logging.getLogger("rlt_jax")


def plan(config: TrainConfig, *, options: PlanOptions) -> None:
    """Print the plan of a run; exit with code 1 if the run does not fit."""
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    log.setLevel(logging.INFO)
    report = make_report(config, compile_programs=options.compile, start_checks=start_checks(config))
    if options.json:
        print(json_text(report_json(report), indent=2))
    else:
        show(report, get_console())
    if not report.fits:
        raise SystemExit(1)


@command
def main() -> None:
    config, action, options = parse_plan_args(sys.argv[1:])
    run_or_print(config, action, run=partial(plan, options=options), show_chat=show_chat)


if __name__ == "__main__":
    main()
