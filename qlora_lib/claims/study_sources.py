"""Facts that the claims of the study and of its README are held against, each with where it is printed; and what this
project measured on the same questions.

How it works: constants are typed once, as printed there. Measured values come from the records that the repository
carries (report/records), never from a machine's own, so that the verdicts are the same everywhere.
"""

from functools import cache

from qlora_lib.errors import QloraError

# Salesforce/wikitext on the Hugging Face hub, configurations wikitext-2-raw-v1 and -v1: rows of each split. A row is a
# line of the file, and many are empty; the second table counts the others.
WIKITEXT2_ROWS = {"Training": 36_718, "Validation": 3_760, "Test": 4_358}
WIKITEXT2_FILLED = {"Training": 23_767, "Validation": 2_461, "Test": 2_891}
# Pointer Sentinel Mixture Models (Merity et al. 2017), table 1: words of the training split, and kinds of words.
WIKITEXT_TOKENS = {"WikiText-2": 2_088_628, "WikiText-103": 103_227_021}
WIKITEXT2_VOCABULARY = 33_278
TINYLLAMA_PRETRAINING = 3e12  # tokens; TinyLlama (Zhang et al. 2024)

# Whose widths are (hidden, heads, intermediate)? BERT (Devlin et al. 2019), section 3; GPT-2 small by its config.json.
KNOWN_WIDTHS = {(768, 12, 3072): "BERT-base and GPT-2 small", (2048, 32, 5632): "TinyLlama-1.1B"}

# QLoRA (Dettmers et al. 2023), abstract: its innovations are these three; LoRA is of Hu et al. (2022).
QLORA_INNOVATIONS = ("4-bit NormalFloat", "double quantization", "paged optimizers")
# PaLM (Chowdhery et al. 2023), appendix B.
MFU_MEANING = "Model FLOPs Utilization"

# GeForce RTX 3090: 10,496 CUDA cores, two operations a cycle, 1.695 GHz (NVIDIA GA102 white paper, appendix A).
RTX3090_FP32 = 10_496 * 2 * 1.695e9

# Perplexity of TinyLlama without any fine-tuning, as others printed it; protocols differ from each other and, since
# the study prints none, from its own. Model cards on the Hugging Face hub: Doctor-Shotgun/TinyLlama-1.1B-32k (the base
# model, 64 rows of 2048 tokens, training split) and Orivael-SRD-Lab/tinyllama-1b-srd4 (the chat model in Q4_K_M).
UNTRAINED_PERPLEXITY = {"TinyLlama-1.1B, 16 bits": 8.5633, "TinyLlama-1.1B-Chat, Q4_K_M": 10.46}

RATE_OF_LORA = 10  # times full fine-tuning's learning rate: LoRA Without Regret (Schulman et al. 2025)


@cache
def bench_record() -> dict:
    """The committed record of `qlora bench`: ratios, measurements and causes."""
    import json

    from qlora_lib.paths import committed_records

    path = committed_records("bench") / "default.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise QloraError("the repository has no record of qlora bench", "Make it: qlora bench --json") from None


def decode_rate(arm: str) -> float:
    """Tokens per second of decoding of an arm of `qlora bench`, e.g. "fp32.stock"."""
    for m in bench_record()["measurements"]:
        if m["name"] == f"decode.{arm}" and m["tokens_per_second"]:
            return m["tokens_per_second"]
    raise QloraError(f"the bench record has no decoding speed of '{arm}'")


def seconds_a_token(arm: str, cause: str) -> float:
    """Seconds of a decoded token that a cause takes, by `qlora bench`."""
    for c in bench_record()["causes"]:
        if (c["arm"], c["cause"]) == (arm, cause) and c["seconds_per_token"]:
            return c["seconds_per_token"]
    raise QloraError(f"the bench record has no '{cause}' of '{arm}'")
