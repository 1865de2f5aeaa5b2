"""Settings of an ablation study. studies/ablation_runs.py reads the study file and builds its runs."""

from dataclasses import dataclass

from rlt_jax.configs.settings import Settings


@dataclass(frozen=True, kw_only=True)
class AblateConfig(Settings):
    """Training runs that differ in a few settings, each under several seeds, and their comparison."""

    study: str | None = None
    """YAML file with base, arms, grid and seeds, or one that comes with the package: `advantages`, `losses`, `paper`,
    `rewards`. None: the arms
    are those of --grid, over --base or the preset tiny."""
    output_dir: str
    """Folder for the study: its runs in ARM/seed-S/, and the comparison."""
    base: str | None = None
    """What replaces the study's base: a YAML file of a training run, such as a config.yaml, or one that comes with the
    package: `legs`, SmolLM2-135M on counting legs."""
    grid: tuple[str, ...] = ()
    """FIELD=VALUES, such as loss.beta=0,0.04: any fields of a training run. All combinations of values make an arm
    each, with every arm of the study."""
    only: tuple[str, ...] = ()
    """Arms to train now. Empty: all. The comparison covers every finished run."""
    seeds: tuple[int, ...] = ()
    """Seeds to train now. Empty: all. Without --study: all seeds of the study."""
    summary_only: bool = False
    """Train nothing; compare the finished runs."""
    dry_run: bool = False
    """Train and write nothing: show arms, hours and memory. Exit code 1 if an arm does not fit."""
    difference: float | None = None
    """A difference in the held-out solution log-prob, nats per token: the report says how many seeds would show it."""
