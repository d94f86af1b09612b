"""One arm, in a process of its own: load, evaluate, train, evaluate, time, and write its record.

How it works: `study` starts `python -m qlora_lib.arm` with a job on standard input, so that the
peak memory of an arm is its own and the allocator's settings can be given before it starts.
Nothing is printed on standard output; the record is written last, atomically. Where several processes train together, each
runs this; what is not training the first does alone (processes.py), and only the first says what it does and writes.
"""

import os
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from qlora_lib import processes
from qlora_lib.checkpoints import checkpoint_size, drop_partial
from qlora_lib.claimed import computing
from qlora_lib.config import Settings
from qlora_lib.errors import QloraError, no_room, one_line, out_of_memory
from qlora_lib.hardware import quiet_logs
from qlora_lib.job import ADAPTER_DIR, OUT_OF_MEMORY, SCRATCH, MODEL_DIR, Job
from qlora_lib.leaving import Left, leave_with
from qlora_lib.records import (
    ModelInfo,
    Parameters,
    Peak,
    Provenance,
    RunRecord,
    SizeBytes,
    Train,
)


class _Stages:
    """Wall seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run(job: Job) -> RunRecord | None:
    """Run one arm and write `job.out/record.json`; None in a process that trains with others and does not lead them."""
    begun = time.perf_counter()
    stages, notes = _Stages(), []
    s, method = job.settings, job.arm.method
    first = (processes.launched() or processes.ALONE).rank == 0 or job.processes == 1
    say = lambda text: first and print(f"[{job.arm.name}] {text}", file=sys.stderr, flush=True)  # noqa: E731

    with stages("start"):
        if unsloths := s.runtime.backend == "unsloth":
            from qlora_lib import unsloth

            unsloth.require()  # before the stack, which it changes, and before any download
        import torch

        from qlora_lib import hardware, models
        from qlora_lib.assets import resolve_model
        from qlora_lib.metrics.memory import peak_resident_bytes
        from qlora_lib.metrics.sizes import count_parameters, model_bytes
        from qlora_lib.scoring import finite_loss, make_scoring, prepare_data, scored_before

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", hardware.usable_cpus())))
        torch.manual_seed(s.seed)
        on = hardware.device()
        together = processes.join(on) if job.processes > 1 else processes.current()
        asset = resolve_model(s.model.name)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all that is needed is here now
    with stages("data"):
        tokenizer = models.load_tokenizer(asset.path)
        data = prepare_data(s, tokenizer)
        scoring = make_scoring(data, s, tokenizer)
        if method != "base" and data.info.task is None:  # too little text is told before a model is loaded
            data.windows("train"), data.windows("validation")
    with stages("load"):
        dtype = together.from_first(lambda: hardware.choose_dtype(s.train.precision, on))
        if sharded := s.runtime.sharding == "fsdp" and method != "base":
            from qlora_lib import sharding

            sharding.check(on, dtype)
            sharding.prepare_environment()
        model = _load(job, asset.path, dtype, on)
        if dtype.name == "fp16" and not together.from_first(lambda: finite_loss(model, data)):
            del model
            dtype = hardware.DType("fp32", "fp16 gave a loss that is not finite on this model")
            model = _load(job, asset.path, dtype, on)
        if method == "base":
            model.requires_grad_(False)
        footprint = model.get_memory_footprint()

    generation = outcome = flops = peak = sizes = None
    measure = lambda: (model_bytes(model), count_parameters(model), _model_info(asset, model))  # noqa: E731
    peak_before = 0
    what = "perplexity" if data.info.task is None else "score"
    if s.evaluation.perplexity and first:
        with stages(what):
            earlier = scored_before(job.before_from, dtype.name, method)
            if earlier and scoring.take(earlier):
                notes.append(f"{what} before training: measured by arm '{job.before_from.name}', same base and test data")
            else:
                say(f"{what} of the base")
                scoring.before(model)
    if method != "base":
        with stages("load"):
            from qlora_lib.training import train

            if unsloths:
                model = unsloth.attach(model, s)
            else:
                prepare = sharding.prepare_for_training if sharded else models.prepare_for_training
                model = prepare(model, method, s.train.gradient_checkpointing)
                if method in ("lora", "qlora"):
                    model = models.attach_lora(model, s.lora, s.seed)
                    if sharded:
                        sharding.adapters_to(model, dtype.torch)
            sizes = measure() if sharded else None  # while the weights are whole
        peak_before = peak_resident_bytes()  # training resets the meter
        together.wait()  # for the first, which scores
        others = f", {together.world} processes" if together.world > 1 else ""
        say(f"training ({method}, {dtype.name}: {dtype.reason}{others})")
        with stages("train"):
            outcome = train(model, data, s, dtype, on, job.out)
        if data.info.task is None:  # FLOPs are counted for windows of one length
            with stages("flops"):
                flops = _flops(model.config, s, method)
            with stages("peak"):  # of all processes, measured while each measures its own
                peak = _together(together.gather(hardware.peak_flops(dtype, on)))
        if not together.leads:
            return None
        if outcome.stopped:
            say(f"stopped: {outcome.stopped}")
            notes.append(outcome.kept)
        elif s.evaluation.perplexity:
            with stages(what):
                say(f"{what} after training")
                scoring.after(model)
    if s.evaluation.new_tokens and not (outcome and outcome.stopped):
        with stages("decode"):
            from qlora_lib.metrics.speed import decode_speed

            say("decode speed")
            if s.train.gradient_checkpointing and outcome:
                model.gradient_checkpointing_disable()  # it excludes the key/value cache
            generation = decode_speed(model, tokenizer, s.evaluation.prompt, s.evaluation.new_tokens, s.evaluation.repeats, s.runtime.fast)
    bytes_, counts, info = sizes or measure()
    with stages("save"):
        files, on_disk = _save(model, job, asset.path, bool(outcome and outcome.stopped))
    record = RunRecord(
        status="stopped" if outcome and outcome.stopped else "complete",
        status_reason=outcome.stopped if outcome else None,
        profile=job.profile,
        arm=job.arm.name,
        label=job.arm.label,
        method=method,
        derived_from=job.arm.derived_from,
        seed=s.seed,
        model=info,
        data=data.info,
        settings=s.model_dump(exclude={"seed"}),
        parameters=Parameters(**counts),
        size_bytes=SizeBytes(
            base=bytes_.base,
            adapter=bytes_.adapter,
            total=bytes_.total,
            quantization_state=bytes_.quantization_state,
            quantized_weights=bytes_.quantized_weights,
            unquantized=bytes_.unquantized,
            on_disk=on_disk,
            footprint_reported=footprint,
        ),
        train=outcome.train if outcome else None,
        **_utilization(flops, outcome.train if outcome else None, peak),
        **scoring.result(),
        generation=generation,
        provenance=Provenance(
            cache_key=job.key,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            device=on if on == "cpu" else hardware.device_name(on),
            cpu=hardware.cpu_name(),
            threads=torch.get_num_threads(),
            processes=together.world,
            memory_bytes=hardware.total_memory(),
            platform=hardware.platform_name(),
            dtype=dtype.name,
            dtype_reason=dtype.reason,
            versions=hardware.versions(),
            git_commit=hardware.git_commit(),
            wall_seconds=time.perf_counter() - begun,
            stage_seconds=stages.seconds,
            peak_resident_bytes=max(peak_resident_bytes(), peak_before),
            environment={k: os.environ[k] for k in (*hardware.KEEP_FREED_MEMORY, "OMP_NUM_THREADS") if k in os.environ},
            notes=notes,
        ),
        files=files,
    )
    record.write(job.out)
    if record.status == "complete":  # not before: until here they can be resumed; what stopped keeps its last good one
        shutil.rmtree(job.out / "checkpoints", ignore_errors=True)
    return record


# --- the parts -----------------------------------------------------------------------------------


def _load(job: Job, base: Path, dtype, on: str):
    """The arm's base: as published, or the weights that an earlier arm trained."""
    import torch

    from qlora_lib import models
    from qlora_lib.config import Quantization

    s = job.settings
    if s.runtime.backend == "unsloth":
        from qlora_lib import unsloth

        return unsloth.load(base, s, job.arm.method, dtype)
    weights, storage = models.weight_dtype(job.arm.method, dtype), torch.uint8
    if s.runtime.sharding == "fsdp" and job.arm.method != "base":
        on, storage = "cpu", weights  # each process's part goes to its GPU later
    if job.derived_from is None:
        return models.load_base(base, s.quantization, weights, on, storage)
    trained = job.derived_from / MODEL_DIR
    if trained.is_dir():
        return models.load_base(trained, s.quantization, weights, on, storage)
    with tempfile.TemporaryDirectory(dir=job.out, prefix=SCRATCH) as merged:
        plain = models.load_base(base, Quantization(), weights, on)
        plain = models.merge_adapter(models.load_adapter(plain, job.derived_from / ADAPTER_DIR))
        plain.save_pretrained(merged)
        del plain
        return models.load_base(Path(merged), s.quantization, weights, on, storage)


def _flops(config, s: Settings, method: str):
    from qlora_lib.cost.flops import step_flops
    from qlora_lib.cost.shapes import ModelShape

    t = s.train
    return step_flops(
        ModelShape.read(config),
        method=method,
        batch=t.batch_size,
        length=s.data.window_length,
        rank=s.lora.rank,
        target_modules=s.lora.target_modules,
        gradient_checkpointing=t.gradient_checkpointing,
        accumulation=t.gradient_accumulation_steps,
    )


def _together(peaks: list[tuple[float | None, str]]) -> tuple[float | None, str]:
    """(FLOP/s of all processes, which peak that is)."""
    rates, what = [rate for rate, _ in peaks], peaks[0][1]
    if len(peaks) == 1:
        return peaks[0]
    return None if None in rates else sum(rates), f"{what}, the sum of {len(peaks)} processes"


def _utilization(flops, trained: Train | None, peak) -> dict:
    """FLOPs of a step, and the share of the peak that the step reached."""
    if trained is None or flops is None:
        return {}
    rate, what = peak
    share = lambda n: n / trained.seconds_per_step / rate if rate else None  # noqa: E731
    return {
        "flops_per_step": flops.model_flops,
        "hardware_flops_per_step": flops.hardware_flops,
        "mfu": share(flops.model_flops),
        "hfu": share(flops.hardware_flops),
        "peak": Peak(flops_per_second=rate, what=what) if rate else None,
    }


def _save(model, job: Job, base: Path, stopped: bool) -> tuple[dict[str, str], int | None]:
    """Keep what was trained; returns ({file: SHA-256}, bytes on disk to deploy it)."""
    from qlora_lib import models
    from qlora_lib.assets.store import sha256_of
    from qlora_lib.metrics.sizes import folder_bytes

    method = job.arm.method
    if method == "base":  # nothing was trained; what a quantized checkpoint takes is seen by writing one
        if job.settings.quantization.format == "none" and job.derived_from is None:
            return {}, folder_bytes(base)
        with tempfile.TemporaryDirectory(dir=job.out, prefix=SCRATCH) as folder:
            model.save_pretrained(folder)
            return {}, folder_bytes(Path(folder))
    if stopped or not job.settings.train.keep_model:
        return {}, None
    folder = job.out / (MODEL_DIR if method == "full" else ADAPTER_DIR)
    sharded = job.settings.runtime.sharding == "fsdp"  # then training has saved it
    if not sharded:
        shutil.rmtree(folder, ignore_errors=True)
    if method == "full":
        if not sharded:
            model.save_pretrained(folder)
        on_disk = folder_bytes(folder)
    else:
        if not sharded:
            models.save_adapter(model, folder)
        on_disk = folder_bytes(folder) + folder_bytes(base)
    files = {str(p.relative_to(job.out)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    return files, on_disk


def _model_info(asset, model) -> ModelInfo:
    from qlora_lib.metrics.sizes import count_parameters

    config = model.config
    keys = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "tie_word_embeddings",
    )
    return ModelInfo(
        name=asset.name,
        source=asset.source,
        revision=asset.revision,
        license=asset.license,
        note=asset.note,
        parameters_total=count_parameters(model)["base"],
        architecture={key: getattr(config, key) for key in keys if hasattr(config, key)},
    )


def main(with_parent: bool = False) -> int:
    """Run the job on standard input's first line; `with_parent`: leave when that input ends."""
    quiet_logs()
    job = Job.from_json(sys.stdin.readline())
    if with_parent:
        leave_with(sys.stdin)
    return perform(job)


def perform(job: Job) -> int:
    """Run a job and return its exit code. Of processes that fail together, the first to fail says why, in one line."""
    leads = (processes.launched() or processes.ALONE).rank == 0
    tell = lambda line: processes.speaks() and print(line, file=sys.stderr)  # noqa: E731
    try:
        with computing(job.out) if leads else nullcontext():
            run(job)
    except Left as left:
        if leads:
            print(f"[{job.arm.name}] left after step {left.step}: the same command goes on from there", file=sys.stderr)
        return left.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as e:
        if os.environ.get("QLORA_DEBUG"):
            traceback.print_exc()
        if processes.lost_others(e):
            return processes.LOST
        if out_of_memory(e):  # `study` says what to do: here there may be no memory for as much as that
            tell(f"[{job.arm.name}] ran out of memory: {one_line(e):.200}")
            return OUT_OF_MEMORY
        if not isinstance(e, QloraError):
            if leads:
                drop_partial(job.out)  # of no use; and where the disk is full, their room is
            e = no_room(e, job.out, checkpoint_size(job.out), "; the same command goes on from the newest whole checkpoint") or QloraError(
                f"arm '{job.arm.name}': {type(e).__name__}: {e!s:.300}",
                "This was not foreseen: `qlora --debug ...` shows where it comes from",
            )
        tell(f"error: {e}")
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(with_parent=True))
