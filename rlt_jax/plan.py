"""Plan how much memory a training run needs and whether it fits: `python -m rlt_jax.plan`. Downloads no weights.

On a machine with a GPU, its size is read and the run's programs are compiled for it; without one, the figures are those
of the ledger's formulas (`planner/ledger.py`).
"""

import json
import logging
import sys

from rich import get_console

from rlt_jax.configs import config_yaml, parse_plan_args
from rlt_jax.errors import command
from rlt_jax.planner.report import make_report
from rlt_jax.planner.tables import report_json, show

log = logging.getLogger("rlt_jax")


@command
def main() -> None:
    config, print_config, options = parse_plan_args(sys.argv[1:])
    if print_config:
        print(config_yaml(config), end="")
        return
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    report = make_report(config, compile_programs=options.compile)
    if options.json:
        print(json.dumps(report_json(report), indent=2))
    else:
        show(report, get_console())
    if not report.fits:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
