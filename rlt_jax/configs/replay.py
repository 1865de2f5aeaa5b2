"""Settings of a replay: a skipped step of a run is computed again."""

from dataclasses import dataclass

import tyro

from rlt_jax.configs.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ReplayConfig(Settings):
    """A skipped step of a run."""

    run: tyro.conf.Positional[str]
    """Run folder of rlt_jax.train or rlt_jax.sft, wherever it is now."""
    step: int | None = None
    """The skipped step. None: the newest that is kept."""
