"""The guide's two snippets, call by call, and its names and links.

How it works: each call is made, with its own arguments, on a tiny model of the same kind; names are read as Python reads
them. Unsloth is not installed and needs a GPU: its arguments are held against the names that its source takes
(sources.py), and what it does not know goes on to the model's constructor, which is asked.
"""

import re

from qlora_lib.claims import libraries, sources
from qlora_lib.claims.checks import figure
from qlora_lib.claims.claim import Claims, Finding, decide, finding
from qlora_lib.cost.models import MODELS
from qlora_lib.published import REFERENCES

CLAIMS = Claims("guide")
UNSLOTH, PEFT = "Implementation Paths, Option 1: Using Unsloth", "Implementation Paths, Option 2: HuggingFace PEFT + BitsAndBytes"
READING = "Further Reading"


@CLAIMS.claim("guide-code-02", UNSLOTH, "max_seq_length=2048 ... load_in_4bit=True", "API call")
@CLAIMS.claim("guide-code-01", UNSLOTH, "use_bf16_immediately=True", "API call")
def unsloth_load(quote: str) -> Finding:
    keywords = quote.split(" ... ")
    unknown = [k for k in keywords if k.split("=")[0] not in sources.UNSLOTH_LOAD]
    error = libraries.load_error(*unknown) if unknown else ""
    return finding(
        decide(not unknown),
        f"from_pretrained of Unsloth {sources.UNSLOTH_VERSION} takes "
        + (f"no {', '.join(k.split('=')[0] for k in unknown)}; passed on: {error or 'loads'}" if unknown else "both"),
        {
            "does not hold": "It is no argument of Unsloth; passed on with the rest it stops the load. The dtype of the products is "
            "given by dtype=torch.bfloat16, which stands there too.",
            "holds": "By its source; Unsloth needs a GPU and was not run.",
        },
        {"unknown": ", ".join(unknown), "error": error, "unsloth": sources.UNSLOTH_VERSION, "version": libraries.versions("transformers")},
    )


@CLAIMS.claim("guide-code-04", PEFT, "from transformers import AutoModelForCausalLM ... bnb_4bit_compute_dtype=torch.bfloat16", "API call")
@CLAIMS.claim("guide-code-03", UNSLOTH, "from unsloth import FastLanguageModel ... dtype=torch.bfloat16", "API call")
def missing_import(quote: str) -> Finding:
    imports, _, keyword = quote.rpartition(" ... ")
    unknown = libraries.unknown_names(keyword.partition("=")[2], imports.replace(" ... ", "\n"))
    return finding(
        decide(not unknown),
        f"names that no line of the snippet defines: {', '.join(unknown) or 'none'}",
        {
            "does not hold": f"As printed it ends in NameError: name '{', '.join(unknown)}' is not defined. An import of "
            f"{', '.join(unknown)} is missing.",
            "holds": "Every name is defined.",
        },
        {"unknown": ", ".join(unknown)},
    )


@CLAIMS.claim("guide-code-05", UNSLOTH, "(Fastest & Simplest) ... lora_dropout=0.05", "consistency")
def fast_dropout(quote: str) -> Finding:
    dropout = figure(quote).value
    return finding(
        decide(dropout == sources.UNSLOTH_FAST_DROPOUT),
        f"Unsloth's fused LoRA kernels want dropout {sources.UNSLOTH_FAST_DROPOUT:g}; the snippet has {dropout:g}",
        {
            "does not hold": "With another dropout than 0 Unsloth says that it leaves its fast patches off and takes a slower path: "
            "the snippet gives away a part of what it is called fastest for.",
            "holds": "The fused kernels are used; whether it is fastest cannot be measured without a GPU.",
        },
        {"dropout": dropout, "fast_dropout": sources.UNSLOTH_FAST_DROPOUT, "unsloth": sources.UNSLOTH_VERSION},
    )


@CLAIMS.claim("guide-code-06", UNSLOTH, "(Fastest & Simplest)", "meaning")
def fastest(quote: str) -> Finding:
    return finding(
        decide(False, known=False),
        "not recomputed: Unsloth needs a GPU",
        "No figure, model or card is named, and Unsloth does not run without a GPU.",
        {"unsloth": sources.UNSLOTH_VERSION},
    )


@CLAIMS.claim("guide-code-07", UNSLOTH, "r=16 ... lora_alpha=16 ... lora_dropout=0.05 ... target_modules=", "API call")
def unsloth_adapt(quote: str) -> Finding:
    unknown = [name for k in quote.split(" ... ") if (name := k.split("=")[0]) not in sources.UNSLOTH_ADAPT]
    return finding(
        decide(not unknown),
        f"get_peft_model of Unsloth {sources.UNSLOTH_VERSION} takes " + (f"no {', '.join(unknown)}" if unknown else "all four"),
        {"holds": "By its source; Unsloth needs a GPU and was not run.", "does not hold": "It is no argument of Unsloth."},
        {"unknown": ", ".join(unknown), "unsloth": sources.UNSLOTH_VERSION},
    )


@CLAIMS.claim("guide-code-10", PEFT, 'device_map="auto"', "API call")
@CLAIMS.claim("guide-code-09", PEFT, 'bnb_4bit_quant_type="nf4" ... bnb_4bit_use_double_quant=True', "API call")
@CLAIMS.claim("guide-code-08", PEFT, "load_in_4bit=True", "API call")
def transformers_load(quote: str) -> Finding:
    errors = {k: libraries.load_error(k) for k in quote.split(" ... ")}
    failed = [k.split("=")[0] for k, error in errors.items() if error]
    remedy = libraries.tried(libraries.four_bits) if failed else ""
    return finding(
        decide(not failed, assuming=len(failed) < len(errors)),
        f"from_pretrained on a tiny LLaMA, {libraries.versions('transformers')}: "
        + "; ".join(f"{k}: {error or 'loads'}" for k, error in errors.items()),
        {
            "does not hold": f"This transformers takes {' and '.join(failed)} only inside "
            f"quantization_config=BitsAndBytesConfig(...), with which the same model {f'fails too ({remedy})' if remedy else 'loads'}; "
            "a plain keyword goes on to the model's constructor. Versions before 5 took load_in_4bit itself.",
            "holds": "It loads.",
        },
        {"failed": ", ".join(failed), "version": libraries.versions("transformers", "accelerate")} | errors,
    )


@CLAIMS.claim("guide-code-11", PEFT, "prepare_model_for_kbit_training(model, use_gradient_checkpointing=True)", "API call")
def prepare(quote: str) -> Finding:
    from peft import prepare_model_for_kbit_training as function

    call = re.fullmatch(r"(\w+)\(model, (\w+)=(\w+)\)", quote)
    model = libraries.four_bits()
    error = "" if call[1] == function.__name__ else f"PEFT has no {call[1]}"
    error = error or libraries.tried(lambda: function(model, **{call[2]: call[3] == "True"}))
    on = any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    return finding(
        decide(on == (call[3] == "True") and not error),
        f"on a tiny LLaMA in 4 bits, {libraries.versions('peft')}: {error or ('checkpointing is on' if on else 'checkpointing is off')}",
        {
            "holds": "It also casts the parameters that are left in 16 bits to fp32, and switches checkpointing on if nothing is "
            "said: LoRA is to be compared at the same setting.",
            "does not hold": "It does not take this call.",
        },
        {"error": error, "checkpointing": int(on), "version": libraries.versions("peft")},
    )


@CLAIMS.claim(
    "guide-code-12",
    PEFT,
    'LoraConfig( ... r=16 ... bias="none" ... task_type=TaskType.CAUSAL_LM ... target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]',
    "API call",
)
def adapters(quote: str) -> Finding:
    import json

    rank, names = int(figure(quote).value), tuple(json.loads(re.search(r"\[.*\]", quote)[0]))
    found: dict[str, int] = {}

    def make() -> None:
        model = libraries.adapted(
            libraries.tiny_model(), rank, *(float(REFERENCES[f"guide.{k}"].text) for k in ("alpha", "dropout")), targets=names
        )
        for name, p in model.named_parameters():
            if "lora_A" in name:
                found[name.split(".")[-4]] = p.shape[0]

    error = libraries.tried(make)
    missing = [name for name in names if name not in found]
    return finding(
        decide(not error and not missing and set(found.values()) == {rank}),
        f"on a tiny LLaMA, {libraries.versions('peft')}: {error or ', '.join(f'{name} at rank {r}' for name, r in found.items())}",
        {"holds": "Each named module of the layer has its adapter.", "does not hold": f"No such module: {', '.join(missing)}."},
        {"error": error, "adapted": len(found), "missing": ", ".join(missing), "version": libraries.versions("peft")},
    )


# --- names -----------------------------------------------------------------------------------------


@CLAIMS.claim("guide-code-13", UNSLOTH, 'model_name="meta-llama/Meta-Llama-3.1-8B"', "name")
def model_name(quote: str) -> Finding:
    name = quote.split('"')[1]
    model = next((m for m in MODELS.values() if name in m.hub_ids), None)
    return finding(
        decide(False, known=not model),
        f"{name} is {'a name of ' + model.hub_ids[0] if model else 'no name that is known here'}",
        {
            "cannot be checked here": "Whether the hub still takes a former name cannot be asked here. The repository is gated: its "
            "licence must be accepted and a token given "
            "first, which the guide does not say.",
            "does not hold": "No repository of that name is known here.",
        },
        {"name": name, "now": model.hub_ids[0] if model else ""},
    )


@CLAIMS.claim("guide-code-14", READING, "BitsAndBytes ... https://github.com/TimDettmers/bitsandbytes", "name")
def bitsandbytes(quote: str) -> Finding:
    said, now = quote.rpartition("https://")[2].lower(), libraries.home("bitsandbytes").removeprefix("https://").lower()
    return finding(
        decide(said == now, assuming=said.rpartition("/")[2] == now.rpartition("/")[2]),
        f"the package names {libraries.home('bitsandbytes')}",
        {
            "holds under an assumption": "The repository has moved to its foundation; the old address works as long as "
            "GitHub redirects it.",
            "does not hold": "It is another repository.",
            "holds": "The package names the same address.",
        },
        {"said": said, "now": now, "version": libraries.versions("bitsandbytes")},
    )


@CLAIMS.claim("guide-code-15", READING, "QLoRA: Efficient Finetuning of Quantized LLMs ... https://arxiv.org/abs/2305.14314", "name")
def paper(quote: str) -> Finding:
    title, _, address = quote.partition(" ... ")
    number = address.rpartition("/")[2]
    return finding(
        decide(sources.ARXIV.get(number) == title),
        f"arXiv {number}: {sources.ARXIV.get(number, 'not known here')}",
        {"holds": "Title and number belong together.", "does not hold": "Title and number do not belong together."},
        {"title": title, "number": number},
    )


@CLAIMS.claim("guide-code-16", "Installation", "pip install -r requirements.txt", "API call")
def requirements(quote: str) -> Finding:
    return finding(
        decide(False, known=False),
        "not recomputed: the file is not part of the document",
        "Which versions it names decides whether the snippets run: with transformers before 5 the second one's load_in_4bit is taken.",
        {"version": libraries.versions("transformers")},
    )
