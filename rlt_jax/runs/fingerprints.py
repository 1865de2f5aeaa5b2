"""Fingerprints of what a run is computed with: models, tokenizers, versions of packages. Paths say nothing of them."""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlt_jax.checkpoints.checksums import checksum, file_sums
from rlt_jax.errors import UserError
from rlt_jax.models import TOKENIZER_FILES, find_weights, resolve_folder

PACKAGES = ("rlt_jax", "jax", "jaxlib", "transformers", "tokenizers")  # whose versions may change what is measured


def model_fingerprints(models: Mapping[str, str]) -> dict[str, str]:
    """`the NAME's weights` and `the NAME's tokenizer` -> number of files and checksum, for NAME -> folder or hub name.

    Weights are the files that `load_model` reads, with config.json; 15 GB take as long as reading them, and are then
    loaded from the system's cache.

    Raises:
      UserError: a model cannot be found or read.
    """
    prints, seen = {}, dict[str, tuple[str, str]]()
    for name, model in models.items():
        if model not in seen:
            folder = resolve_folder(model)
            seen[model] = (
                _fingerprint([folder / "config.json", *find_weights(folder).files]),
                _fingerprint(folder / file for file in TOKENIZER_FILES if (folder / file).is_file()),
            )
        prints[f"the {name}'s weights"], prints[f"the {name}'s tokenizer"] = seen[model]
    return prints


def version_fingerprints() -> dict[str, str]:
    """`the version of PACKAGE` -> version."""
    return {f"the version of {name}": _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its folder without being installed
        return "unknown"


def _fingerprint(files: Iterable[Path]) -> str:
    files = list(files)
    try:
        sums = file_sums(files)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}): copy the model again") from None
    text = json.dumps([(file.name, found.checksum) for file, found in zip(files, sums)])
    return f"{len(files)} files {checksum(text.encode())[:16]}"
