"""Run the whole pipeline, from the teacher's warm-up to evaluated students, or summarise several seeds.

    python -m rlt_jax.pipeline --study tiny --work runs/pipeline/seed-1 --seed 1
    python -m rlt_jax.pipeline --work runs/pipeline/seed-1 --collect seed-1.tar.gz
    python -m rlt_jax.pipeline --summary runs/pipeline/seed-1 runs/pipeline/seed-2 --out runs/pipeline/results

Every stage is one or more `python -m rlt_jax.NAME`, one process each. Repeating the call skips what is done and resumes
the rest. docs/pipeline.md describes each stage and every file of the work folder.
"""

import io
import sys
from pathlib import Path

from rlt_jax import stops
from rlt_jax.configs import PipelineConfig, check_pipeline_config, load_study, parse_command, run_or_print
from rlt_jax.errors import command
from rlt_jax.runs.launch import OutOfTime
from rlt_jax.studies.pipeline import run_stages
from rlt_jax.studies.pipeline_archive import collect
from rlt_jax.studies.pipeline_folder import check_summary_folders
from rlt_jax.studies.study_file import study_path

OUT_OF_TIME = 3  # exit code when --minutes were not enough


def pipeline(config: PipelineConfig) -> None:
    """Run the stages, pack the work folder, and summarise: those of the three that are requested, in this order.

    Raises:
      UserError: unusable options, study or folders, before anything is done; a command that failed.
      OutOfTime: config.minutes have passed.
    """
    check_pipeline_config(config)
    study = None if config.study is None else load_study(study_path(config.study, "pipeline"))
    work = None if config.work is None else Path(config.work)
    folders = [Path(folder) for folder in config.summary]
    check_summary_folders(folders, running=None if study is None else work, seed=config.seed)
    if study is not None and work is not None:
        with stops.reported(lambda: "the same call skips what is done and resumes the rest"):
            run_stages(config, study, work)
    if config.collect is not None and work is not None:
        collect(work, Path(config.collect))
    if folders:
        from rlt_jax.studies.pipeline_summary import summarise  # here, as JAX and matplotlib take two seconds to load

        summarise(folders, Path(config.out))


@command
def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that a pipe or file shows what is done
    parsed = parse_command(PipelineConfig, sys.argv[1:], command="pipeline", description=__doc__)
    try:
        run_or_print(*parsed, run=pipeline)
    except OutOfTime as error:
        print(error)
        raise SystemExit(OUT_OF_TIME) from None


if __name__ == "__main__":
    main()
