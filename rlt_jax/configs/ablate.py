"""Options of an ablation study. Its file and the runs that it stands for: studies/ablation_runs.py."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Training runs that differ in some settings, over several seeds, and their comparison."""

    study: str
    """YAML file with base, arms, grid and seeds; or `paper`: the paper's ablations, which come with the package."""
    output_dir: str
    """Folder of the study: its runs in ARM/seed-S/, and the comparison."""
    base: str | None = None
    """YAML file of a training run, such as a config.yaml, in place of the study's base."""
    only: tuple[str, ...] = ()
    """Arms to train now. Empty: all. The comparison is of all that have been trained."""
    seeds: tuple[int, ...] = ()
    """Seeds to train now. Empty: all."""
    summary_only: bool = False
    """Train nothing, compare what is there."""
