"""Checkpoint directories: their location, their JSON files, and the model that they build on."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenswift_jax.checkpoint.converted import SOURCE_FILE, conversion_advice, converted, source_name
from tokenswift_jax.checkpoint.gguf.container import is_gguf
from tokenswift_jax.checkpoint.orbax_weights import ORBAX_FOLDER
from tokenswift_jax.checkpoint.packaged import PACKAGED, packaged_file, shipped_heads
from tokenswift_jax.checkpoint.tensors import HEADS_FILE, INDEX_FILE
from tokenswift_jax.checkpoint.tokenizer_load import MORE_TEMPLATES, loaded
from tokenswift_jax.errors import UserError, writing
from tokenswift_jax.models.hf_fields import OF_GENERATION
from tokenswift_jax.paths import expanded, resolved
from tokenswift_jax.progress_report import Report, silent
from tokenswift_jax.text.reading import read_json

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
GENERATION_FILE = "generation_config.json"
_TEMPLATES = f"{MORE_TEMPLATES}/*.jinja"
_PATTERNS = ("*.safetensors", _TEMPLATES, f"{ORBAX_FOLDER}/**/*")  # of the other files of a checkpoint
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(path_or_hub_id: str | Path, report: Report = silent, *, heads: bool = True) -> Path:
    """A checkpoint's directory on this machine.

    It downloads the files of a hub id (owner/name) that are read. It converts a GGUF file, or the one of a packaged
    model (`packaged`), into the cache folder.

    Args:
      path_or_hub_id: a directory, a GGUF file, the name of a packaged model, or a hub id.
      report: receives the progress of a conversion.
      heads: whether a packaged model comes with this project's draft heads; its weights are the base of that directory.

    Raises:
      UserError: no such directory, no config.json in it, a GGUF file that cannot be converted, or the download failed
        (offline, unknown, gated).
    """
    if not str(path_or_hub_id):
        raise UserError("the name of the checkpoint is empty; give a directory, a GGUF file or a hub id")
    path = expanded(path_or_hub_id)
    try:
        is_folder = path.is_dir()
    except OSError as error:  # such as a name that is too long, or a folder that may not be searched
        raise UserError(f"cannot read the checkpoint {path_or_hub_id}: {error.strerror}") from None
    if is_folder:
        if not (path / "config.json").is_file():
            raise UserError(f"{path} is not a checkpoint: it has no config.json")
        return path
    if is_gguf(path):
        return converted(path, report=report)
    if path.exists():
        raise UserError(
            f"{path} is a file; a checkpoint is a directory with config.json and model.safetensors, or a GGUF file"
        )
    name = str(path_or_hub_id)
    if name in PACKAGED:
        weights = _packaged(name, report)
        return (heads and shipped_heads(name, weights)) or weights
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"no such directory: {name} (and not a hub id, which reads owner/name)")
    return _download(name, f"no directory {name}")


def _packaged(name: str, report: Report) -> Path:
    file, model = packaged_file(name), PACKAGED[name]
    if file is not None:
        return converted(file, name, report)
    return _download(model.hub_id, f"{name} is not installed (pip install 'tokenswift_jax[{model.extra}]')")


def gguf_file(path_or_hub_id: str | Path) -> Path | None:
    """The GGUF file that `resolve` would convert; None for a directory or hub id."""
    path, name = expanded(path_or_hub_id), str(path_or_hub_id)
    if is_gguf(path):
        return path
    return packaged_file(name) if name in PACKAGED and not path.exists() else None


def named_on_hub(path_or_hub_id: str | Path) -> str | None:
    """The hub id; None if the argument names a directory, a file or an installed model on this machine."""
    name, path = str(path_or_hub_id), expanded(path_or_hub_id)
    if path.exists():
        return None
    if name in PACKAGED:
        return None if packaged_file(name) is not None else PACKAGED[name].hub_id
    return name


def _download(hub_id: str, without: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = ["config.json", GENERATION_FILE, "model*.safetensors", INDEX_FILE, HEADS_FILE]
    wanted += [*TOKENIZER_FILES, _TEMPLATES]
    try:
        path = Path(snapshot_download(hub_id, allow_patterns=wanted))
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        raise UserError(
            f"{without}, and {hub_id} cannot be downloaded: the hub cannot be reached and there is no "
            "local copy; name a local directory or go online"
        ) from None
    except HFValidationError:
        raise UserError(
            f"{without}, and {hub_id} is no hub id either, which reads owner/name, without -- and .., without - or . "
            "at an end, without .git, in at most 96 characters"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, HfHubHTTPError) and error.strerror:
            raise UserError(f"cannot download {hub_id} from the hub: {error.strerror}") from None
        raise UserError(f"cannot download {hub_id} from the hub: {str(error).strip().splitlines()[0]}") from None
    if not (path / "config.json").is_file():
        raise UserError(f"{hub_id} on the hub is not a checkpoint: it has no config.json")
    return path


def base_directory(directory: Path) -> Path:
    """The directory of the model's weights: `tokenswift.base` of config.json, or the directory itself.

    `base` is a path relative to the checkpoint, an absolute path, the name of a packaged model, or a hub id.

    Raises:
      UserError: the base does not exist, or has a base itself.
    """
    base = _base(read_json(directory / "config.json"))
    if base is None:
        return directory
    local = directory / base
    found = resolve(local if local.exists() else base, heads=False)
    if _base(read_json(found / "config.json")) is not None:
        raise UserError(f"base {base!r} of {directory} has a base itself; name the directory that holds the weights")
    return found


def lasting_base(directory: Path, hub_id: str | None) -> str:
    """The value of `base` with which another checkpoint refers to the weights of this one.

    Args:
      directory: the checkpoint.
      hub_id: the id from which it was downloaded, so that the name works on other machines too; None if it was not.

    Returns:
      A hub id, the name of a packaged model, or an absolute path. A conversion in the cache folder goes by the path of
      its GGUF file.

    Raises:
      UserError: as for `base_directory`.
    """
    base = _base(read_json(directory / "config.json"))
    found = base_directory(directory)
    if base is not None:
        hub_id = None if (directory / base).exists() else named_on_hub(base)
    return hub_id or source_name(found) or str(found.resolve())


def read_config(directory: Path) -> dict[str, Any]:
    """The checkpoint's config.json; a file without an architecture takes the missing fields from its base.

    Raises:
      UserError: the file is not a JSON object, or the base does not exist.
    """
    config = read_json(directory / "config.json")
    if "model_type" in config or _base(config) is None:
        return config
    base = read_json(base_directory(directory) / "config.json")
    return {name: value for name, value in base.items() if name != "medusa_heads"} | config


def _base(config: Mapping[str, Any]) -> str | None:
    block = config.get("tokenswift")
    base = block.get("base") if isinstance(block, Mapping) else None
    if base is not None and (not isinstance(base, str) or not base):
        raise UserError(f'"base" in config.json is {base!r}; it must be a directory or a hub id')
    return base


def _companion_directory(directory: Path, names: tuple[str, ...]) -> Path | None:
    for place in (directory, base_directory(directory)):
        if any((place / name).is_file() for name in names):
            return place
    return None


def load_tokenizer(directory: Path) -> Any | None:
    """The transformers tokenizer of the checkpoint or its base; None if there is none.

    It may have more entries than the model's vocabulary: an id outside is an error when it occurs in a text.

    Raises:
      UserError: the tokenizer cannot be loaded, or does not follow its tokenizer.json.
    """
    place = _companion_directory(directory, _VOCABULARIES)
    if place is None:
        base = base_directory(directory)
        with conversion_advice(base):
            # A conversion writes both files or neither.
            if source_name(base) is not None and (base / "tokenizer_config.json").is_file():
                raise UserError(f"{base / 'tokenizer.json'} is missing")
        return None
    with conversion_advice(place):
        return loaded(place, TOKENIZER_FILES)


def load_generation_config(directory: Path) -> dict[str, Any]:
    """The generation_config.json of the checkpoint or its base.

    Without that file, the settings of `generate` that transformers 4 wrote into config.json apply.

    Raises:
      UserError: the file is not a JSON object.
    """
    place = _companion_directory(directory, (GENERATION_FILE,))
    if place is not None:
        with conversion_advice(place):
            return read_json(place / GENERATION_FILE)
    return {
        name: value for name, value in read_config(directory).items() if name in OF_GENERATION and value is not None
    }


def check_apart(file: Path, argument: str, directory: Path) -> None:
    """Refuses a file to write, the argument of that name, which is one of the checkpoint's or its base's files.

    Raises:
      UserError: it is one, or the GGUF file from which one of them was converted.
    """
    places = {directory, base_directory(directory)}
    names = ("config.json", GENERATION_FILE, *TOKENIZER_FILES, INDEX_FILE, SOURCE_FILE)
    files = [place / name for place in places for name in names]
    for place in places:
        files += [found for pattern in _PATTERNS for found in place.glob(pattern)]
        files += [Path(source)] if (source := source_name(place)) is not None else []
    if resolved(file) in {resolved(one) for one in files if one.is_file()}:
        raise UserError(
            f"{argument} {file} would replace a file of the checkpoint; name another file", arguments=(argument,)
        )


def copy_companions(directory: Path, folder: Path) -> None:
    """Copies the tokenizer and generation files of a checkpoint into a folder, which may be the checkpoint itself; its
    own files take precedence over its base's.

    Raises:
      WriteError: they cannot be written.
    """
    tokenizer = _companion_directory(directory, _VOCABULARIES)
    generation = _companion_directory(directory, (GENERATION_FILE,))
    files = [] if generation is None else [(generation, generation / GENERATION_FILE)]
    if tokenizer is not None:
        named = [*(tokenizer / name for name in TOKENIZER_FILES), *sorted(tokenizer.glob(_TEMPLATES))]
        files += [(tokenizer, file) for file in named if file.is_file()]
    for place, file in files:
        copy = folder / file.relative_to(place)
        if resolved(copy) != resolved(file):
            with writing(copy):
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)
