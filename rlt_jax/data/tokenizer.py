"""Load tokenizers, and find the ids that end a text.

`PreTrainedTokenizerFast` instead of `AutoTokenizer`: under transformers 5 the latter builds a Qwen2 tokenizer for every
folder whose config says qwen2, with Qwen2's own pre-tokenisation instead of the one in tokenizer.json. The ids then
differ from those the model was trained on (tests/data/test_tokenizer.py shows it).
"""

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlt_jax.data.turns import turns_of
from rlt_jax.errors import UserError
from rlt_jax.hub import fetch, local_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FILES = (
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "*.jinja",
    "*config.json",
    "rlt_jax.json",
)


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """Load the tokenizer of a model folder or hub name, with the splitting of its tokenizer.json and its chat template.

    No code of the folder is run: where tokenizer.json is, an `auto_map` that names some is not needed.

    Raises:
      UserError: no such folder or hub name, no tokenizer in it, one without character offsets, or one that only the
        folder's own code can read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here: the import takes seconds

    folder = model_files(path)
    has_json = (folder / "tokenizer.json").is_file()
    if not has_json and not (folder / "vocab.json").is_file():
        raise UserError(
            f"expected tokenizer.json (or vocab.json and merges.txt) in {folder}, but there is none: copy the "
            "tokenizer's files of the base model into the folder"
        )
    if not has_json:
        _refuse_custom_code(folder)
    tokenizer_class = PreTrainedTokenizerFast if has_json else AutoTokenizer
    try:
        tokenizer = tokenizer_class.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **_own_splitting(folder)
        )
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


def _refuse_custom_code(folder: Path) -> None:
    """Refuse a tokenizer that only a Python file of its folder can read."""
    import transformers

    config = _json_object(folder / "tokenizer_config.json")
    maps = [config.get("auto_map"), _json_object(folder / "config.json").get("auto_map")]
    own = next(
        (found for found in maps if isinstance(found, list) or (isinstance(found, dict) and "AutoTokenizer" in found)),
        None,
    )
    name = config.get("tokenizer_class")
    if own is not None and not (isinstance(name, str) and hasattr(transformers, name)):
        raise UserError(
            f"expected tokenizer.json in {folder}, or a tokenizer class of transformers, but its auto_map names code "
            f"({own['AutoTokenizer'] if isinstance(own, dict) else own}), and code that comes with a model is never "
            "run: add tokenizer.json (of the base model, or made on a machine where you trust that code: "
            "AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True).save_pretrained(NEW_FOLDER))"
        )


def _own_splitting(folder: Path) -> dict[str, Any]:
    """Keeps transformers from advising to replace the splitting of tokenizer.json, unless the folder asks for that."""
    asked = "fix_mistral_regex" in _json_object(folder / "tokenizer_config.json")
    return {} if asked else {"fix_mistral_regex": False}


def _json_object(file: Path) -> dict[str, Any]:
    """A file's JSON object; empty if there is none, which whoever needs it will say."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def eos_ids(tokenizer: "PreTrainedTokenizerFast", model_folder: str | Path) -> tuple[int, ...]:
    """Token ids that end a completion: the tokenizer's EOS, those of generation_config.json, the chat template's.

    The last is the token that ends an assistant's turn, which fine-tuning teaches: a base model's EOS is another one.

    Raises:
      UserError: generation_config.json cannot be read, or there is no end token.
    """
    ids = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    file = model_files(model_folder) / "generation_config.json"
    if file.is_file():
        try:
            named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
            ids += [] if named is None else [int(i) for i in (named if isinstance(named, list) else [named])]
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"expected a JSON object with eos_token_id (a number or several) in {file}, but: {error}: fix the file"
            ) from None
    if tokenizer.chat_template and (end_id := turns_of(tokenizer).end_id) is not None:
        ids.append(end_id)
    if not ids:
        raise UserError(
            f"expected an end-of-text token for {model_folder}, but neither the tokenizer nor generation_config.json "
            "nor the chat template names one: set eos_token in tokenizer_config.json"
        )
    return tuple(dict.fromkeys(ids))


def end_texts(tokenizer: "PreTrainedTokenizerFast") -> tuple[str, ...]:
    """The texts of the tokens that end a completion, as far as tokenizer and chat template name them."""
    end_id = turns_of(tokenizer).end_id
    texts = [tokenizer.eos_token, None if end_id is None else tokenizer.convert_ids_to_tokens(end_id)]
    return tuple(dict.fromkeys(text for text in texts if text))


def check_same_tokenizer(teacher: "PreTrainedTokenizerFast", student: "PreTrainedTokenizerFast") -> None:
    """Reject a student who would read the teacher's token ids otherwise: as another text, or as a text in other tokens.

    Tokens that only the student has are fine: the teacher never writes them.

    Raises:
      UserError: the first difference.
    """
    problem = _vocabulary_difference(teacher, student) or _splitting_difference(teacher, student)
    if problem:
        raise UserError(
            f"expected teacher and student to share one vocabulary, since the student reads the teacher's token ids, "
            f"but {problem}: choose a student of the teacher's family, or let it read the text in tokens of its own "
            "with --reward.student-tokens text"
        )


def _vocabulary_difference(teacher: "PreTrainedTokenizerFast", student: "PreTrainedTokenizerFast") -> str | None:
    """An id of the teacher's that stands for something else, or for nothing, to the student."""
    teacher_token, student_token = (
        {i: token for token, i in tokenizer.get_vocab().items()} for tokenizer in (teacher, student)
    )
    missing = sorted(i for i in teacher_token if i not in student_token)
    different = sorted(i for i in teacher_token if i in student_token and teacher_token[i] != student_token[i])
    if different:
        i = different[0]
        return (
            f"{len(different)} of {len(teacher_token)} token ids differ, first id {i}: {teacher_token[i]!r} (teacher), "
            f"{student_token[i]!r} (student)"
        )
    if missing:
        shown = ", ".join(f"{i} {teacher_token[i]!r}" for i in missing[:4]) + (", ..." if len(missing) > 4 else "")
        return f"the student lacks {len(missing)} of the teacher's {len(teacher_token)} tokens: {shown}"
    return None


def _splitting_difference(teacher: "PreTrainedTokenizerFast", student: "PreTrainedTokenizerFast") -> str | None:
    """What makes the two split a text into other tokens of the same vocabulary."""
    ours, theirs = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (teacher, student))
    for part in ("normalizer", "pre_tokenizer"):
        if ours[part] != theirs[part]:
            return f"the {part} of their tokenizer.json differs"
    for first, (merge, other) in enumerate(
        zip_longest(ours["model"].get("merges", []), theirs["model"].get("merges", []))
    ):
        if merge != other:
            return f"their merges differ, first merge {first}: {merge!r} (teacher), {other!r} (student)"
    rest = sorted(
        key
        for key in ours["model"].keys() | theirs["model"].keys()
        if key not in ("vocab", "merges") and ours["model"].get(key) != theirs["model"].get(key)
    )
    return f"{', '.join(rest)} of the model in their tokenizer.json differs" if rest else None


def model_files(path: str | Path) -> Path:
    """`path` if it is a folder, else a local copy of the small files of that hub repository."""
    folder = local_folder(path)
    return fetch(str(path), files=_FILES, without=("*.py",)) if folder is None else folder


def known_ids(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray:
    """The ids that stand for a token, i32[K], sorted; there may be gaps.

    The embeddings of most published models have more rows than that, and a model can put probability on their ids.
    """
    return np.array(sorted({*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder}), np.int32)
