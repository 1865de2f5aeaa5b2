"""Find the study file that `--study` names."""

from pathlib import Path
from typing import Literal

from rlt_jax.errors import UserError
from rlt_jax.paths import did_you_mean

STUDIES = Path(__file__).resolve().parents[1] / "assets" / "studies"


def study_path(study: str, command: Literal["ablate", "pipeline"]) -> Path:
    """The file of a study: the package's study of this name, else the path itself.

    Args:
      command: the command that the study is for; the package has its studies in assets/studies/COMMAND.
    Raises:
      UserError: there is neither.
    """
    shipped = {path.stem: path for path in (STUDIES / command).glob("*.yaml")}
    if study in shipped:
        return shipped[study]
    if not Path(study).is_file():
        names, hint = ", ".join(sorted(shipped)), did_you_mean(study)
        raise UserError(f"--study {study}: {hint}expected a YAML file, or one of the package's: {names}")
    return Path(study)
