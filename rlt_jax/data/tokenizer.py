"""Load tokenizers, and find the ids that end a text.

`PreTrainedTokenizerFast` instead of `AutoTokenizer`: under transformers 5 the latter builds a Qwen2 tokenizer for every
folder whose config says qwen2, with Qwen2's own pre-tokenisation instead of the one in tokenizer.json. The ids then
differ from those the model was trained on (tests/data/test_tokenizer.py shows it).
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlt_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FILES = ("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "*.jinja", "*config.json")


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """Load the tokenizer of a model folder or hub name, with the splitting of its tokenizer.json and its chat template.

    Raises:
      UserError: no such folder or hub name, no tokenizer in it, or one without character offsets.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here: the import takes seconds

    folder = _model_folder(path)
    has_json = (folder / "tokenizer.json").is_file()
    if not has_json and not (folder / "vocab.json").is_file():
        raise UserError(
            f"expected tokenizer.json (or vocab.json and merges.txt) in {folder}, but there is none: copy the "
            "tokenizer's files of the base model into the folder"
        )
    tokenizer_class = PreTrainedTokenizerFast if has_json else AutoTokenizer
    try:
        tokenizer = tokenizer_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust parser raises bare Exceptions; the files are at fault in any case
        raise UserError(
            f"expected a readable tokenizer in {folder}, but loading it says: {error}: restore its files"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"expected a fast tokenizer in {folder}, which knows character offsets, but came "
            f"{type(tokenizer).__name__}: add its tokenizer.json"
        )
    return tokenizer


def eos_ids(tokenizer: "PreTrainedTokenizerFast", model_folder: str | Path) -> tuple[int, ...]:
    """Token ids that end a text: the tokenizer's EOS, then those of the model's generation_config.json.

    Raises:
      UserError: generation_config.json cannot be read, or there is no end token.
    """
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    file = _model_folder(model_folder) / "generation_config.json"
    if file.is_file():
        try:
            named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            ids += [] if named is None else [int(i) for i in (named if isinstance(named, list) else [named])]
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"expected a JSON object with eos_token_id (a number or several) in {file}, but: {error}: fix the file"
            ) from None
    if not ids:
        raise UserError(
            f"expected an end-of-text token for {model_folder}, but neither the tokenizer nor generation_config.json "
            "names one: set eos_token in tokenizer_config.json"
        )
    return tuple(dict.fromkeys(ids))


def check_same_tokenizer(teacher: "PreTrainedTokenizerFast", student: "PreTrainedTokenizerFast") -> None:
    """Reject a student whose vocabulary differs from the teacher's: token ids are passed on unchanged.

    Extra tokens at the end of one of the vocabularies are fine.

    Raises:
      UserError: an id stands for two different tokens, or is missing in one vocabulary below its last id.
    """
    teacher_token, student_token = (
        {i: token for token, i in tokenizer.get_vocab().items()} for tokenizer in (teacher, student)
    )
    shared = range(min(max(teacher_token), max(student_token)) + 1)
    different = [i for i in shared if teacher_token.get(i) != student_token.get(i)]
    if different:
        i = different[0]
        raise UserError(
            f"expected teacher and student to share one vocabulary, but {len(different)} of {len(shared)} token ids "
            f"differ, first id {i}: {teacher_token.get(i)!r} (teacher), {student_token.get(i)!r} (student): choose a "
            "student of the teacher's family"
        )


def _model_folder(path: str | Path) -> Path:
    """`path` if it is a folder, else a local copy of the small files of that hub repository."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(path), allow_patterns=list(_FILES)))
    except (OSError, HFValidationError) as error:  # any failure to reach or find a repository is an OSError
        raise UserError(
            f"expected a model folder or a hub name, but {path!s} is not a folder and the hub says: "
            f"{str(error).splitlines()[0]}: check the name, or give the folder of a downloaded model"
        ) from None
