"""Facts of the literature and of other projects that claims are held against, each with where it is printed.

How it works: typed once, as printed there. What this project measured is not here (measured.py), nor what the audited
documents print (their quotations, and qlora_lib.published).
"""

from dataclasses import dataclass

# Dense models in billions of parameters, as their names on the hub say. Qwen2.5 Technical Report (arXiv 2412.15115),
# table 1; Qwen3 Technical Report (arXiv 2505.09388), table 1.
QWEN_SIZES = {"Qwen2.5": (0.5, 1.5, 3, 7, 14, 32, 72), "Qwen3": (0.6, 1.7, 4, 8, 14, 32)}

# QLoRA (Dettmers et al. 2023, arXiv 2305.14314).
PAPER_PERPLEXITY = {"int4": 34.34, "fp4": 31.07, "nf4": 27.41}  # table 2: mean over models of 125M to 13B; nf4 with DQ
PAPER_MMLU = {"bf16": 53.0, "fp4": 52.2, "nf4": 53.1}  # table 4: mean 5-shot accuracy in %, LoRA on such a base
PAPER_BELOW_GB = {65: 48}  # abstract: memory in GB to fine-tune so many billion parameters on one GPU

# Training, LoRA against QLoRA of the same model on one GPU: seconds of QLoRA over those of LoRA for the same work.
SLOWER = {
    "litgpt, Llama-2-7B on an A100, NF4": 3.68 / 2.36,  # minutes; tutorials/finetune_lora.md
    "litgpt, Llama-2-7B on an A100, NF4 and double quantization": 3.83 / 2.36,
    "torchtune, Llama-3.1-8B on an RTX 4090": 3083 / 2413,  # tokens per second; README
}
# Peak memory in training there, GB: (NF4, NF4 and double quantization). litgpt, tutorials/finetune_lora.md.
DOUBLE_QUANTIZED_GB = (14.14, 13.84)
# Tokens per second of decoding, 16 bits and NF4 with double quantization: bitsandbytes, benchmarking/README.md, 0.45.
DECODING = {"3B on a T4": (25.66, 13.58), "8B on an RTX 4090": (47.46, 57.08)}

DOLLY_ROWS = 15_011  # databricks/databricks-dolly-15k, its data card
ALPACA_EVAL = {"eval": 805}  # split -> instructions: tatsu-lab/alpaca_eval, README; there is no other split
# Data whose hub repository loads by a Python script: AlpacaEval's own package asks for it with trust_remote_code=True
# (tatsu-lab/alpaca_eval, src/alpaca_eval/constants.py).
LOADED_BY_SCRIPT = ("AlpacaEval",)
CPUS = ("Intel Core Ultra 7 265KF",)  # Intel's product specifications

# What `FastLanguageModel` of Unsloth 2026.8.19 takes by name: unsloth/models/loader.py and llama.py. What
# `from_pretrained` does not know goes on, through its **kwargs, to transformers and the model's constructor.
UNSLOTH_VERSION = "2026.8.19"
UNSLOTH_LOAD = frozenset(
    "model_name max_seq_length dtype load_in_4bit load_in_8bit load_in_16bit full_finetuning token device_map rope_scaling "
    "fix_tokenizer trust_remote_code use_gradient_checkpointing resize_model_vocab revision use_exact_model_name "
    "offload_embedding float32_mixed_precision fast_inference gpu_memory_utilization float8_kv_cache random_state "
    "max_lora_rank disable_log_stats qat_scheme load_in_fp8 unsloth_tiled_mlp text_only local_files_only".split()
)
UNSLOTH_ADAPT = frozenset(
    "model r target_modules lora_alpha lora_dropout bias layers_to_transform layers_pattern finetune_last_n_layers "
    "use_gradient_checkpointing random_state max_seq_length use_rslora modules_to_save init_lora_weights loftq_config "
    "temporary_location qat_scheme target_parameters ensure_weight_tying".split()
)
UNSLOTH_FAST_DROPOUT = 0.0  # llama.py: its fused LoRA kernels are used at dropout 0 and bias "none" only


@dataclass(frozen=True)
class Paper:
    first_author: str
    venue: str
    year: int


PAPERS = {  # title -> as published
    "QLoRA: Efficient Finetuning of Quantized LLMs": Paper("Dettmers", "NeurIPS", 2023),
    "LoRA: Low-Rank Adaptation of Large Language Models": Paper("Hu", "ICLR", 2022),
    "Qwen2.5 Technical Report": Paper("Yang", "Alibaba Group", 2024),  # arXiv 2412.15115: An Yang and 42 others of the Qwen team
    "Parameter-Efficient Transfer Learning for NLP": Paper("Houlsby", "ICML", 2019),
}
ARXIV = {"2305.14314": "QLoRA: Efficient Finetuning of Quantized LLMs"}
