"""The project on Qwen models: its names, data, hardware and settings.

How it works: it prints plans and no results, so names are held against tables with their sources (sources.py), memory is
predicted by qlora_lib.cost for Qwen3's models of the sizes it names, and what it promises against this project's records.
"""

import re

from qlora_lib.claims import libraries, measured, sources
from qlora_lib.claims.checks import GIB, agree, figure
from qlora_lib.claims.claim import Claims, Finding, decide, finding
from qlora_lib.claims.guide_code import bitsandbytes
from qlora_lib.cost.cards import gpu_card
from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.fitting import TOO_LARGE, Fit, fit
from qlora_lib.cost.memory import SMALLEST_PAGED, adapter_tensors
from qlora_lib.cost.models import shape_of
from qlora_lib.cost.workload import Workload

CLAIMS = Claims("qwen")
OVERVIEW, DATA, METRICS, HARDWARE, REFERENCES = "Overview", "Datasets", "Evaluation Metrics", "Hardware & Configuration", "References"
CARD, SIZES = "RTX 3090", ("qwen3-4b", "qwen3-8b")


def step(method: str, model: str, **more) -> Fit:
    """One sequence of 512 tokens with checkpointing, as the project trains: bf16 on the RTX 3090."""
    settings = dict(batch=1, length=512, rank=16, dtype="bf16", device="cuda", checkpointing=True)
    return fit(Workload(shape_of(model)[0], method, **settings | more), gpu_card(CARD))


@CLAIMS.claim("qwen-01", OVERVIEW, "Qwen2.5-4B-Instruct", "name")
def first_model(quote: str) -> Finding:
    family, size = re.fullmatch(r"(\w+(?:\.\d)?)-([\d.]+)B(?:-\w+)?", quote).groups()
    sizes = sources.QWEN_SIZES.get(family, ())
    others = [name for name, those in sources.QWEN_SIZES.items() if float(size) in those]
    near = sorted(sizes, key=lambda s: abs(s - float(size)))[:2]
    return finding(
        decide(float(size) in sizes),
        f"{family} has " + ", ".join(f"{s:g}" for s in sizes) + " billion parameters",
        {
            "does not hold": f"There is no {family} of {size}B, so nothing can have been trained on it; the nearest are "
            f"{' and '.join(f'{s:g}B' for s in sorted(near))}. "
            + (f"{' and '.join(others)} has that size." if others else "No family known here has that size."),
            "holds": "A model of that name exists.",
        },
        {"family": family, "claimed_billions": float(size), "families_with_it": ", ".join(others)},
    )


CLAIMS.claim("qwen-02", OVERVIEW, "Qwen2.5-8B-Instruct", "name")(first_model)


@CLAIMS.claim("qwen-03", OVERVIEW, "on consumer GPUs without sacrificing model performance", "meaning")
def without_sacrifice(quote: str) -> Finding:
    value, low, high = measured.perplexity_above("qlora", "lora")
    full = measured.perplexity_above("qlora", "full")
    mmlu = sources.PAPER_MMLU
    return finding(
        decide(high <= 0, assuming=mmlu["nf4"] >= mmlu["bf16"] or low <= 0),
        f"perplexity of QLoRA against LoRA {value:+.1f} % ({low:+.1f} to {high:+.1f}), against full fine-tuning {full[0]:+.1f} %, "
        f"each at its best rate ({measured.MODEL}); "
        f"QLoRA paper, 5-shot MMLU {mmlu['nf4']} against {mmlu['bf16']} with a 16-bit base",
        {
            "holds under an assumption": "On LLaMA of 7 to 65 billion parameters, by accuracy, the QLoRA paper finds none lost. On "
            "the small model here perplexity is worse; for Qwen models "
            "the project prints no result.",
            "holds": "None is lost here.",
            "does not hold": "It is worse by every figure that there is.",
        },
        {
            "against_lora_percent": value,
            "low": low,
            "high": high,
            "against_full_percent": full[0],
            "paper_nf4": mmlu["nf4"],
            "paper_bf16": mmlu["bf16"],
        },
    )


# --- data ------------------------------------------------------------------------------------------


@CLAIMS.claim("qwen-04", DATA, "All datasets are loaded via the Hugging Face `datasets` library", "API call")
def datasets(quote: str) -> Finding:
    from qlora_lib.assets.registry import DATA as KNOWN

    formats = {
        name: {path.rpartition(".")[2] for path in KNOWN[key].files.values()}
        for name, key in (("SST-2", "sst2"), ("SQuAD v1.1", "squad"), ("AlpacaEval", "alpaca-eval"))
    }
    error, files = libraries.loads_a_script(), ", ".join(f"{name} {' and '.join(sorted(f))}" for name, f in formats.items())
    by_script = [name for name in formats if name in sources.LOADED_BY_SCRIPT]
    return finding(
        decide(not by_script or not error, assuming=len(by_script) < len(formats)),
        f"files as published: {files}; a loading script in {libraries.versions('datasets')}: {error or 'runs'}",
        {
            "holds under an assumption": f"{' and '.join(by_script)} comes with a loading script, which datasets has refused since "
            f"version 4: by its name it loads with older versions only. "
            "Its JSON file can be given to the library's json reader.",
            "holds": "This version of datasets runs loading scripts too.",
        },
        {"error": error, "version": libraries.versions("datasets"), "by_script": ", ".join(by_script)},
    )


@CLAIMS.claim("qwen-06", "Directory Structure", "alpacaeval/ ... tokenized data for training and evaluation", "meaning")
@CLAIMS.claim("qwen-05", DATA, "evaluates QLoRA fine-tuning across three key NLP tasks ... AlpacaEval", "meaning")
def alpaca_eval(quote: str) -> Finding:
    needs = "train" if "training" in quote or "fine-tuning" in quote else "eval"
    splits = ", ".join(f"{split} ({n:,} instructions)" for split, n in sources.ALPACA_EVAL.items())
    trained = needs in sources.ALPACA_EVAL
    return finding(
        decide(trained, assuming="evaluates" in quote),
        f"AlpacaEval's only split: {splits}",
        {
            "does not hold": "There is nothing to train on: its instructions are the test, and a model that had seen them could not "
            "be judged by them.",
            "holds under an assumption": "As a test of a model that was trained on other instructions, which are not named.",
            "holds": "It has that split.",
        },
        {f"{split} instructions": n for split, n in sources.ALPACA_EVAL.items()},
    )


@CLAIMS.claim("qwen-07", METRICS, "F1 Score & Exact Match (SQuAD)", "name")
def squad(quote: str) -> Finding:
    from qlora_lib.metrics.tasks import squad_em_f1

    exact, f1 = squad_em_f1("The Eiffel tower, Paris", ["eiffel tower"])
    return finding(
        decide({"F1", "Exact"} <= set(quote.split()) and exact == 0 and 0 < f1 < 100),
        f"SQuAD v1.1's own metrics; for “The Eiffel tower, Paris” against “eiffel tower” {exact:g} and {f1:g}",
        {
            "holds": "They are two metrics of the data's own evaluation: equality after normalization, and the overlap of words.",
            "does not hold": "They are not the data's own metrics.",
        },
        {"exact_match": exact, "f1": f1},
    )


# --- hardware and settings ----------------------------------------------------------------------------


@CLAIMS.claim("qwen-08", HARDWARE, "NVIDIA RTX 3090 (24GB VRAM)", "number")
def card(quote: str) -> Finding:
    name = re.search(r"RTX \d+", quote)[0]
    memory = figure(quote, 1).value
    actual = GPUS[name].memory_bytes / GIB
    needs = {model: step("qlora", model) for model in SIZES}
    fits = all(found.verdict != TOO_LARGE for found in needs.values())
    sizes = {model: found.needs[0] / GIB for model, found in needs.items()}
    return finding(
        decide(agree(memory, actual)),
        f"{actual:g} GiB by {GPUS[name].source}; QLoRA at rank 16, one sequence of 512 tokens, needs at least "
        + ", ".join(f"{size:.1f} GiB ({model})" for model, size in sizes.items()),
        {
            "holds": "As the data sheet says" + (", and QLoRA of models of 4 and 8 billion parameters fits." if fits else "."),
            "does not hold": f"The data sheet says {actual:g} GiB.",
        },
        {"claimed_gb": memory, "data_sheet_gib": actual} | {f"{model} GiB": size for model, size in sizes.items()},
    )


@CLAIMS.claim("qwen-09", HARDWARE, "Intel Ulta 7 265KF", "name")
def cpu(quote: str) -> Finding:
    words = set(quote.split())
    near = max(sources.CPUS, key=lambda name: len(words & set(name.split())))
    wrong = [w for w in quote.split() if w not in near.split()]
    return finding(
        decide(not wrong),
        f"the processor is called {near}",
        {"does not hold": f"No processor is called {' '.join(wrong)}: a slip of the pen.", "holds": "There is such a processor."},
        {"nearest": near, "unknown_words": ", ".join(wrong)},
    )


@CLAIMS.claim("qwen-10", HARDWARE, "bfloat16 precision for LoRA adapters", "mechanism")
def precision(quote: str) -> Finding:
    said = next(d for d in ("bfloat16", "float16", "float32") if d in quote)
    default, off = libraries.adapter_dtype("bfloat16"), libraries.adapter_dtype("bfloat16", False)
    return finding(
        decide(said == default, assuming=said == off),
        f"PEFT's adapters on a bfloat16 base: {default}; with autocast_adapter_dtype=False {off}",
        {
            "holds under an assumption": "That PEFT's default is switched off, or that the dtype of the products is meant. AdamW's "
            "small steps are lost in bfloat16's 8 significant bits, "
            "which is why PEFT keeps what is trained in fp32.",
            "holds": "It is PEFT's default.",
            "does not hold": "PEFT makes no such adapters on a bfloat16 base.",
        },
        {"said": said, "default": default, "switched_off": off, "version": libraries.versions("peft")},
    )


@CLAIMS.claim("qwen-11", HARDWARE, "Optimizer: Paged AdamW ... r = 4, 8, 16", "mechanism")
def paged(quote: str) -> Finding:
    ranks = [int(r) for r in re.findall(r"\d+", quote.partition("r = ")[2])]
    shares = {}
    for model in SIZES:
        for rank in ranks:
            tensors = adapter_tensors(shape_of(model)[0], rank)
            shares[f"{model}, r = {rank}"] = 100 * sum(n for n in tensors if n >= SMALLEST_PAGED) / sum(tensors)
    paged_at = [case for case, share in shares.items() if share > 0]
    return finding(
        decide(len(paged_at) == len(shares), assuming=bool(paged_at)),
        "share of optimizer states in tensors that bitsandbytes pages, all linear layers adapted: "
        + ", ".join(f"{share:.0f} % ({case})" for case, share in shares.items()),
        {
            "holds under an assumption": f"bitsandbytes pages no tensor below {SMALLEST_PAGED:,} elements: at the smaller ranks it "
            f"pages nothing, at {'; '.join(paged_at)} the MLP's matrices, "
            "if the MLP is adapted.",
            "does not hold": f"bitsandbytes pages no tensor below {SMALLEST_PAGED:,} elements, and no adapter matrix is that large: "
            f"the optimizer is paged in name only.",
            "holds": "At every rank some adapter matrices are large enough to be paged.",
        },
        {f"{case}, %": share for case, share in shares.items()} | {"smallest_paged": SMALLEST_PAGED},
    )


@CLAIMS.claim("qwen-12", METRICS, "Validation loss curves comparing QLoRA vs. full fine-tuning", "meaning")
def full_fine_tuning(quote: str) -> Finding:
    """On the project's card, from the usual way to the leanest that qlora_lib.cost knows."""
    ways = {
        "fp32 weights, AdamW": dict(optimizer="adamw"),
        "fp32 weights, paged 8-bit AdamW": dict(optimizer="paged_adamw_8bit"),
        "bf16 weights, paged 8-bit AdamW": dict(optimizer="paged_adamw_8bit", weight_dtype="bf16"),
    }
    method = "full" if "full fine-tuning" in quote else "lora"
    found = {f"{model}, {way}": step(method, model, **more) for model in SIZES for way, more in ways.items()}
    fits = [case for case, f in found.items() if f.verdict != TOO_LARGE]
    every = all(any(case.startswith(model) for case in fits) for model in SIZES)
    return finding(
        decide(len(fits) == len(found), assuming=every),
        "at least needed of 24 GiB: " + ", ".join(f"{f.needs[0] / GIB:.1f} ({case})" for case, f in found.items()),
        {
            "does not hold": f"Not on the stated RTX 3090, unless weights or gradients too are moved to the host, "
            f"which is not said: not of 8B; "
            f"{'of 4B only with ' + ' or '.join(c.partition(', ')[2] for c in fits) if fits else 'and not of 4B'}.",
            "holds under an assumption": "In the leaner ways only, which the project does not name.",
            "holds": "It fits in each way.",
        },
        {f"{case} GiB": f.needs[0] / GIB for case, f in found.items()},
    )


@CLAIMS.claim("qwen-13", METRICS, "Rank vs. accuracy trade-off plots", "meaning")
def ranks(quote: str) -> Finding:
    from qlora_lib.sensitivity import optimum

    axis = measured.setting("rank")
    good = [p.value for p in optimum(axis, measured.tolerance())]
    spread = max(p.mean for p in axis.points if p.mean is not None) - axis.best.mean
    return finding(
        decide(len(good) < len(axis.points), known=len(good) < len(axis.points)),
        "validation loss by rank, " + ", ".join(f"{p.value:g}: {p.mean:.3f}" for p in axis.points) + f" nats ({measured.MODEL})",
        {
            "cannot be checked here": f"No plot or figure is printed. Here no trade-off between ranks is shown: they differ by "
            f"{spread:.3f} nats, below the tolerance of {measured.tolerance():.2f}.",
            "holds": "Here ranks differ by more than the tolerance.",
        },
        {f"nats at rank {p.value:g}": p.mean for p in axis.points} | {"tolerance": measured.tolerance()},
    )


# --- references ------------------------------------------------------------------------------------


@CLAIMS.claim("qwen-17", REFERENCES, "Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019.", "name")
@CLAIMS.claim("qwen-16", REFERENCES, "Zhang et al., Qwen2.5 Technical Report, Alibaba Group, 2024.", "name")
@CLAIMS.claim("qwen-15", REFERENCES, "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.", "name")
@CLAIMS.claim("qwen-14", REFERENCES, "Dettmers et al., QLoRA: Efficient Finetuning of Quantized LLMs, NeurIPS 2023.", "name")
def cited(quote: str) -> Finding:
    author, title, venue, year = re.fullmatch(r"(\w+) et al\., (.+), ([\w ]+?),? (\d{4})\.", quote).groups()
    paper = sources.PAPERS.get(title)
    right = {"first author": paper.first_author, "venue": paper.venue, "year": paper.year} if paper else {}
    said = {"first author": author, "venue": venue, "year": int(year)}
    wrong = {what: value for what, value in right.items() if value != said[what]}
    return finding(
        decide(not wrong, known=paper is not None),
        f"{paper.first_author} et al., {paper.venue} {paper.year}" if paper else "no such title is known here",
        {
            "holds": "Author, venue and year are right.",
            "does not hold": "Not so: " + "; ".join(f"the {what} is {value}" for what, value in wrong.items()) + ".",
            "cannot be checked here": "No such title is known here.",
        },
        {"said": f"{author}, {venue}, {year}"} | {f"right {what}": value for what, value in wrong.items()},
    )


CLAIMS.claim("qwen-18", OVERVIEW, "bitsandbytes ... https://github.com/TimDettmers/bitsandbytes", "name")(bitsandbytes)
