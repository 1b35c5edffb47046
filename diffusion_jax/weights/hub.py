"""Where a model is: a directory or file here, or an id of the Hugging Face hub.

    find("checkpoints/my_model")                          a directory
    find("stable-diffusion-v1-5/stable-diffusion-v1-5")   org/name: its directory
    find("org/name/model.safetensors")                    one file of it

What is in the hub's cache is used without asking the network; what is not is downloaded,
but only the files that are read: configs, tokenizers and one set of safetensors.
`HF_HUB_OFFLINE=1` never asks, `HF_HOME` moves the cache.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Collection, Iterable

import huggingface_hub
from huggingface_hub import constants, errors

from diffusion_jax.weights import directory, image_config, karlo, published, tensors

ID = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)")
TIMEOUT = 10.0  # seconds
CONFIG = directory.CONFIG
MODULES = ("unet", "vae", *directory.TEXTS)
PLAIN_DIRECTORIES = ("tokenizer", "tokenizer_2", "scheduler")
KARLO_DIRECTORIES = ("tokenizer", "feature_extractor", *karlo.SCHEDULERS)
IS_KARLO = "text_proj/"  # which no other family has
SUFFIXES = (".json", ".txt", ".safetensors")


def find(
    name: str, *, variant: str | None = None, modules: Collection[str] | None = None
) -> pathlib.Path:
    """The directory or file of that name, downloaded if need be.

    With `modules`, of a model only those directories, of `variant` where they have
    that, and the configs of the others.
    """
    path = pathlib.Path(name).expanduser()
    if path.exists():
        return path
    match = ID.fullmatch(name)
    if not match or name.startswith("."):
        raise FileNotFoundError(f"no directory or file {name}")
    repo, inner = match[1], match[2].removeprefix("/")
    missing = f"{repo} is not there"
    cached = _snapshot(repo)
    if cached is not None:
        try:
            check_complete(cached, inner, variant, modules)
            return cached / inner
        except (FileNotFoundError, ValueError) as error:
            missing = str(error)
    wanted = choose(repo, _list(repo, name, missing), inner, variant, modules)
    try:
        downloaded = huggingface_hub.snapshot_download(
            repo, allow_patterns=wanted, etag_timeout=TIMEOUT
        )
    except (OSError, errors.HTTPError, errors.HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{repo}: the download failed: {_line(error)}"
        ) from None
    return pathlib.Path(downloaded) / inner


def class_name(name: str) -> str | None:
    """What the model_index.json of a name says that it is of; None where none is found.

    Of a repository of the hub only that file is downloaded.
    """
    path, match = pathlib.Path(name).expanduser(), ID.fullmatch(name)
    if not path.exists() and match and not name.startswith("."):
        path = _index_directory(match[1], match[2].removeprefix("/"))
    try:
        found = json.loads((path / directory.INDEX).read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _index_directory(repo: str, inner: str) -> pathlib.Path:
    """Where its model_index.json is, if it has one."""
    root = _snapshot(repo)
    if root is None or not (root / inner / directory.INDEX).is_file():
        wanted = [f"{inner}/{directory.INDEX}".removeprefix("/")]
        try:
            root = huggingface_hub.snapshot_download(
                repo, allow_patterns=wanted, etag_timeout=TIMEOUT
            )
        except Exception:  # noqa: BLE001  `find` will say what is wrong
            return pathlib.Path(repo)
    return pathlib.Path(root) / inner


def choose(
    repo: str,
    names: Iterable[str],
    inner: str = "",
    variant: str | None = None,
    modules: Collection[str] | None = None,
) -> list[str]:
    """Of the files of a repository, those that are read; `modules` as of `find`."""
    names = sorted(names)
    if inner:
        chosen = [n for n in names if n == inner or n.startswith(f"{inner}/")]
        if not chosen:
            raise FileNotFoundError(f"{repo} has no {inner}")
        if inner in names:
            return chosen
        return _choose_below(repo, chosen, inner, variant, modules)
    if directory.INDEX not in names:
        chosen = [name for name in names if name in published.TOKENIZER_FILES]
        if chosen:
            return chosen
        files = [f"{repo}/{name}" for name in names if name.endswith(".safetensors")]
        hint = f"; to read one file, name it: {tensors.shown(files)}" if files else ""
        raise FileNotFoundError(f"{repo} has no {directory.INDEX}{hint}")
    with_tensors, plain = MODULES, PLAIN_DIRECTORIES
    if any(name.startswith(IS_KARLO) for name in names):
        with_tensors, plain = karlo.MODULES, KARLO_DIRECTORIES
    there = {
        module: [n.split("/")[1] for n in names if re.fullmatch(rf"{module}/[^/]+", n)]
        for module in (*with_tensors, *plain)
    }
    has_variant = any(variant in tensors.variants(there[m]) for m in with_tensors)
    if variant is not None and not has_variant and modules is None:
        raise ValueError(f"{repo} has no variant {variant!r}")
    wanted = [directory.INDEX]
    for module, files in there.items():
        if files and modules is not None and module not in modules:
            files = [CONFIG] if CONFIG in files else []
        elif files and module in with_tensors:
            own = variant if variant in tensors.variants(files) else None
            files = [CONFIG, *weight_files(files, own, f"{repo}/{module}")]
        wanted += [f"{module}/{n}" for n in files if n.endswith(SUFFIXES)]
    return wanted


def _choose_below(
    repo: str,
    names: list[str],
    inner: str,
    variant: str | None,
    modules: Collection[str] | None,
) -> list[str]:
    """Of the files of a directory in a repository: a model, a module or a tokenizer."""
    start = f"{inner}/"
    below = [name.removeprefix(start) for name in names]
    if directory.INDEX in below or any(
        name in published.TOKENIZER_FILES[:3] for name in below
    ):
        chosen = choose(f"{repo}/{inner}", below, "", variant, modules)
    else:
        files = [name for name in below if "/" not in name]
        plain = [n for n in files if n.endswith((".json", ".txt"))]
        chosen = [name for name in plain if ".index." not in name]
        if tensors.variants(files) or CONFIG in files:
            own = variant if variant in tensors.variants(files) else None
            chosen += weight_files(files, own, f"{repo}/{inner}")
    if not chosen:
        raise FileNotFoundError(f"{repo}/{inner} has nothing that is read")
    return [start + name for name in chosen]


def weight_files(names: Iterable[str], variant: str | None, where: str) -> list[str]:
    """The file of a module's weights, or the index and all shards that it can name."""
    names = list(names)
    main = tensors.choose(names, variant, where)
    if not main.endswith(".json"):
        return [main]
    word = rf"\.{re.escape(variant)}" if variant else ""
    stem, shard = main.split(".")[0], r"-\d+-of-\d+"
    pattern = rf"{stem}(?:{word}{shard}|{shard}{word})\.safetensors"
    return [main, *(name for name in names if re.fullmatch(pattern, name))]


def check_complete(
    root: pathlib.Path,
    inner: str,
    variant: str | None,
    modules: Collection[str] | None = None,
) -> None:
    """Raises unless a snapshot of a repository has all that is read of it."""
    if inner:
        if not (root / inner).exists():
            raise FileNotFoundError(f"{inner} is not there")
        if (root / inner / directory.INDEX).is_file():
            check_complete(root / inner, "", variant, modules)
        return
    if not (root / directory.INDEX).is_file():
        if any((root / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            return
        raise FileNotFoundError(f"{directory.INDEX} is not there")
    kinds = (*directory.PLAIN, *directory.XL, *karlo.PIPELINES)
    index = directory.read_index(root, kinds)
    if index["_class_name"] in karlo.PIPELINES:
        parts, known = karlo.components(root, index, modules), karlo.MODULES
        if modules is not None:
            variant = karlo.variant_there(root, parts, variant)
            if not (root / "text_encoder" / CONFIG).is_file():
                raise FileNotFoundError(f"text_encoder/ lacks {CONFIG}")
    else:
        parts, known = directory.components(root, index), MODULES
    directory.open_tensors(root, [n for n in parts if n in known], variant)
    wanted = [(n, _plain_files(n)) for n in parts if n not in known]
    for name, files in wanted:
        whole = "tokenizer" in name and (root / name / "tokenizer.json").is_file()
        missing = [f for f in files if not (root / name / f).is_file()]
        if missing and not whole:
            raise FileNotFoundError(f"{name}/ lacks {', '.join(missing)}")


def _plain_files(name: str) -> tuple[str, ...]:
    """What a directory without tensors has."""
    if "tokenizer" in name:
        return ("vocab.json", "merges.txt")
    if name == "feature_extractor":
        return (image_config.FILE,)
    return (directory.SCHEDULER_CONFIG,)


def _snapshot(repo: str) -> pathlib.Path | None:
    try:
        found = huggingface_hub.snapshot_download(repo, local_files_only=True)
    except (OSError, ValueError):
        return None
    return pathlib.Path(found)


def _list(repo: str, name: str, missing: str) -> list[str]:
    """The files of a repository, as the hub says, which is asked once."""
    try:
        found = huggingface_hub.HfApi().model_info(repo, timeout=TIMEOUT)
    except errors.GatedRepoError:
        raise FileNotFoundError(
            f"{repo} is gated: accept its terms at {constants.ENDPOINT}/{repo} and run "
            "`hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{name} is no directory here, and the hub has no {repo} (or it is private: "
            "`hf auth login`)"
        ) from None
    except Exception as error:  # noqa: BLE001  of every library that the hub's client is built on
        raise FileNotFoundError(
            f"{name} is no directory here, and the cache {constants.HF_HUB_CACHE} does "
            f"not have it ({missing}); the hub was not reached ({_line(error)}). Where "
            f"there is a network, run `hf download {repo} --include {directory.INDEX} "
            "'*/*.json' '*/*.txt' '*/*.safetensors'`, or copy its directory here and "
            "name that"
        ) from None
    return [sibling.rfilename for sibling in found.siblings or ()]


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
