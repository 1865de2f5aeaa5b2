"""Settings of an ablation study. studies/ablation_runs.py reads the study file and builds its runs."""

from dataclasses import dataclass

from rlt_jax.configs.settings import Settings


@dataclass(frozen=True, kw_only=True)
class AblateConfig(Settings):
    """Training runs that differ in a few settings, each under several seeds, and their comparison."""

    study: str
    """YAML file with base, arms, grid and seeds, or `paper` for the paper's ablations, which come with the package."""
    output_dir: str
    """Folder for the study: its runs in ARM/seed-S/, and the comparison."""
    base: str | None = None
    """YAML file of a training run, such as a config.yaml, that replaces the study's base."""
    only: tuple[str, ...] = ()
    """Arms to train now. Empty: all. The comparison covers every finished run."""
    seeds: tuple[int, ...] = ()
    """Seeds to train now. Empty: all."""
    summary_only: bool = False
    """Train nothing; compare the finished runs."""
