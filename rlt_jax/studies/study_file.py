"""Find the study file that `--study` names, and the base that `--base` names."""

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
    return _named("--study", study, STUDIES / command)


def base_path(base: str) -> Path:
    """The file of a base that takes the place of an ablation study's: the package's of this name, else the path.

    Raises:
      UserError: there is neither.
    """
    return _named("--base", base, STUDIES / "bases")


def study_names(command: Literal["ablate", "pipeline"]) -> str:
    """The names of the package's studies, for a message."""
    return ", ".join(sorted(path.stem for path in (STUDIES / command).glob("*.yaml")))


def _named(flag: str, name: str, folder: Path) -> Path:
    shipped = {path.stem: path for path in folder.glob("*.yaml")}
    if name in shipped:
        return shipped[name]
    if not Path(name).is_file():
        names, hint = ", ".join(sorted(shipped)), did_you_mean(name)
        raise UserError(f"{flag} {name}: {hint}expected a YAML file, or one of the package's: {names}")
    return Path(name)
