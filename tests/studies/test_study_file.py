"""Which file --study names."""

import pytest

from rlt_jax.errors import UserError
from rlt_jax.studies.study_file import base_path, study_names, study_path


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *[("ablate", name) for name in ("advantages", "losses", "paper", "rewards")],
        ("pipeline", "tiny"),
        ("pipeline", "lab-legs"),
    ],
)
def test_studies_of_the_package_have_names(command, name):
    path = study_path(name, command)
    assert path.is_file() and path.parts[-4:] == ("assets", "studies", command, f"{name}.yaml")


def test_names_are_found_before_files(tmp_path, monkeypatch):
    (tmp_path / "tiny").write_text("")
    monkeypatch.chdir(tmp_path)
    assert study_path("tiny", "pipeline") != tmp_path / "tiny" and study_path("tiny", "pipeline").stat().st_size


def test_a_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("")
    assert study_path(str(tmp_path / "mine.yaml"), "pipeline") == tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("command", "known"), [("ablate", "advantages, losses, paper, rewards"), ("pipeline", "lab, lab-legs, tiny")]
)
def test_neither(command, known, tmp_path):
    for study in ("pap", str(tmp_path)):
        with pytest.raises(UserError) as error:
            study_path(study, command)
        assert str(error.value) == f"--study {study}: expected a YAML file, or one of the package's: {known}"


def test_bases_of_the_package_have_names_and_are_no_studies(tmp_path):
    assert base_path("legs").parts[-3:] == ("studies", "bases", "legs.yaml")
    assert study_names("ablate") == "advantages, losses, paper, rewards"
    with pytest.raises(UserError) as error:
        base_path(str(tmp_path))
    assert str(error.value) == f"--base {tmp_path}: expected a YAML file, or one of the package's: legs"
