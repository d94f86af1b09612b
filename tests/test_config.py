"""Settings: every wrong one is a line that names the key and the nearest valid one."""

import functools
import itertools
import json
import re

import pytest
from hypothesis import given, strategies as st

from qlora_lib.assets import registered_data, registered_models
from qlora_lib.checking import dotted_keys, parse_yaml
from qlora_lib.config import PROFILES_DIR, Settings, load_profile, parse_overrides, profile_names
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.errors import UsageError
from qlora_lib.paths import project_root, results_dir
from qlora_lib.tasks.made import MADE

SMOKE = (PROFILES_DIR / "smoke.yaml").read_text()


def refused(act) -> str:
    """The one line that `act()` is refused with."""
    with pytest.raises(UsageError) as e:
        act()
    assert "\n" not in str(e.value)
    return str(e.value)


def settings_with(*assignments: str, arm: str = "qlora") -> Settings:
    profile = load_profile("demo")
    return profile.settings(profile.arm(arm), parse_overrides(assignments))


@pytest.fixture
def own(tmp_path):
    """Load the smoke profile with one piece of its text replaced."""

    def load(old: str, new: str, name: str = "mine.yaml"):
        assert SMOKE.count(old) == 1
        path = tmp_path / name
        path.write_text(SMOKE.replace(old, new))
        return load_profile(str(path))

    return load


# --- what is packaged ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", profile_names())
def test_each_packaged_profile_loads_and_each_arm_resolves(name):
    profile = load_profile(name)
    assert profile.name == name and profile.arms
    for arm in profile.arms:
        settings = profile.settings(arm)
        assert Settings.model_validate(settings.model_dump()) == settings
        for key, value in arm.set.items():
            *sections, last = key.split(".")
            assert getattr(functools.reduce(getattr, sections, settings), last) == value
        assert settings.model.name in [m.name for m in registered_models()]
        assert settings.data.name in ["tiny-text", *MADE, *(d.name for d in registered_data())]


@pytest.mark.parametrize("name", profile_names())
def test_each_profile_begins_with_the_command_that_runs_it(name):
    first = (PROFILES_DIR / f"{name}.yaml").read_text().splitlines()[0]
    does = "sweep" if name == "demo-long" else "report"  # its records are drawn in demo's pages
    assert first == f"# qlora {does} --profile {name}"


def test_the_three_methods_train_on_equal_tokens_where_they_are_compared():
    for name in ("demo", "smoke", "t4-tinyllama-wikitext2"):  # the others compare no full fine-tuning
        profile = load_profile(name)
        compared = [profile.settings(profile.arm_of_method(m)) for m in ("full", "lora", "qlora")]
        tokens = {
            s.train.batch_size * s.train.gradient_accumulation_steps * s.data.window_length for s in compared
        }
        assert len(tokens) == 1 and len({s.seed for s in compared}) == 1
        assert len({(s.train.max_steps, s.train.warmup_steps, s.train.schedule) for s in compared}) == 1


@pytest.mark.parametrize(
    "method, batch, accumulation, rate, optimizer",
    [("full", 2, 4, 2e-5, "adamw_torch"), ("lora", 4, 2, 2e-4, "adamw_torch"), ("qlora", 4, 2, 2e-4, "paged_adamw_8bit")],
)
def test_t4_holds_the_published_hyperparameters(method, batch, accumulation, rate, optimizer):
    profile = load_profile("t4-tinyllama-wikitext2")
    arm = next(a for a in profile.arms if a.method == method)  # the full one is declared only
    s = profile.settings(arm)
    t = s.train
    assert (t.batch_size, t.gradient_accumulation_steps, t.eval_batch_size) == (batch, accumulation, batch)
    assert (t.learning_rate, t.optimizer, t.precision) == (rate, optimizer, "fp16")
    assert (t.max_steps, t.warmup_steps, t.epochs, s.data.window_length) == (500, 100, 1.0, 512)
    assert (s.lora.rank, s.lora.alpha, s.lora.dropout) == (16, 32, 0.05)
    assert s.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert (s.quantization.format, s.quantization.double_quant) == ("nf4" if method == "qlora" else "none", True)
    assert (s.model.name, s.data.name) == ("tinyllama-1.1b", "wikitext-2")


def test_the_arm_that_cannot_run_as_published_says_why_and_its_arithmetic_holds():
    profile = load_profile("t4-tinyllama-wikitext2")
    (arm,) = [a for a in profile.arms if not a.runs]
    assert (arm.name, arm.method) == ("full-as-published", "full")
    tinyllama = ModelShape(
        hidden_size=2048, num_layers=22, num_heads=32, num_kv_heads=4, head_dim=64,
        intermediate_size=5632, vocab_size=32_000,
    )  # fmt: skip
    parameters = tinyllama.parameters.total
    assert f"{parameters:,}" in arm.why  # 1,100,048,384
    per_parameter = int(re.search(r"take (\d+) bytes each", arm.why)[1])
    assert per_parameter == 4 + 4 + 4 + 4  # weight, gradient, and the two averages of AdamW
    assert f"{parameters * per_parameter / 2**30:.1f} GiB" in arm.why
    # The nearest arm that runs differs in what makes it fit, and in nothing else.
    nearest_arm, declared = profile.settings(profile.arm("full")), profile.settings(arm)
    assert nearest_arm.train.optimizer == "paged_adamw_8bit" and nearest_arm.train.gradient_checkpointing
    same = {"optimizer": declared.train.optimizer, "gradient_checkpointing": False}
    assert nearest_arm.train.model_copy(update=same) == declared.train


def test_the_rates_of_demo_are_the_best_of_its_search():
    profile = load_profile("demo")
    path = project_root() / "report" / "records" / profile.search.record
    if not path.exists():
        pytest.skip("the search has not been run yet")
    best = json.loads(path.read_text())["best"]
    trained = [a for a in profile.arms if a.method != "base" and profile.settings(a).data == profile.data]  # no task's
    assert {a.method for a in trained} == set(best)
    for arm in trained:
        assert profile.settings(arm).train.learning_rate == best[arm.method], arm.name


# --- overrides -----------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_arm_and_the_arm_over_the_profile():
    assert settings_with(arm="lora").train.learning_rate == load_profile("demo").arm("lora").set["train.learning_rate"]
    assert settings_with("train.learning_rate=0.01", "train.learning_rate=0.02").train.learning_rate == 0.02
    assert settings_with().train.max_steps == load_profile("demo").train.max_steps


def test_overriding_one_arm_leaves_the_profile_and_the_others_alone():
    profile = load_profile("demo")
    before = profile.model_dump()
    modules = ["q_proj"]
    s = profile.settings(profile.arm("lora"), {"lora.target_modules": modules})
    modules.append("spoilt")
    assert s.lora.target_modules == ["q_proj"] and profile.model_dump() == before


@pytest.mark.parametrize(
    "text, value", [("1e-4", 1e-4), ("1E-4", 1e-4), (".5e-3", 5e-4), ("+2.e2", 200.0), ("1.0e-4", 1e-4), ("0.1", 0.1), ("1", 1)]
)
def test_numbers_with_exponents_are_numbers(text, value):
    assert parse_yaml(f"rate: {text}", "here") == {"rate": value}


@given(st.floats(min_value=1e-12, max_value=1))
def test_every_rate_survives_being_written_down(rate):
    assert parse_overrides([f"train.learning_rate={rate!r}"]) == {"train.learning_rate": rate}
    assert settings_with(f"train.learning_rate={rate:.6e}").train.learning_rate == float(f"{rate:.6e}")


@pytest.mark.parametrize("text", ["2024", "2024-01-01", "notes #1.txt", "a: b.txt", "[x].txt", "yes", "~", "1e5", "a=b.txt"])
def test_a_text_setting_takes_what_was_written(text):
    assert settings_with(f"data.name={text}").data.name == text


def test_a_quoted_text_loses_its_quotes():
    assert settings_with("""evaluation.prompt='It''s: "x"'""").evaluation.prompt == 'It\'s: "x"'


@pytest.mark.parametrize(
    "assignment, said",
    [
        ("train.max_step=3", r"unknown key 'train\.max_step'.*Did you mean 'train\.max_steps'\?"),
        ("max_steps=3", r"unknown key 'max_steps'.*Did you mean 'train\.max_steps'\?"),
        ("lora.r=3", r"unknown key 'lora\.r'.*Did you mean 'lora\.rank'\?"),
        ("zzz=3", r"unknown key 'zzz'.*Choose from: seed, model\.name"),
        ("lora=3", r"'lora'.*is a section.*lora\.rank, lora\.alpha"),
        ("name=x", r"unknown key 'name'"),
        ("train.max_steps=abc", r"'train\.max_steps'.*integer, got 'abc'"),
        ("train.max_steps=5.5", r"'train\.max_steps'.*integer, got 5\.5"),
        ("train.max_steps=true", r"'train\.max_steps'.*integer, got True"),
        ("train.max_steps=", r"'train\.max_steps'.*integer, got None"),
        ("train.max_steps=0", r"'train\.max_steps'.*greater than or equal to 1, got 0"),
        ("train.gradient_checkpointing=1", r"'train\.gradient_checkpointing'.*boolean, got 1"),
        ("train.learning_rate=fast", r"'train\.learning_rate'.*number, got 'fast'"),
        ("train.learning_rate=.nan", r"'train\.learning_rate'.*finite.*nan"),
        ("lora.alpha=.inf", r"'lora\.alpha'.*finite.*inf"),
        ("train.epochs=.inf", r"'train\.epochs'.*finite"),
        ("lora.dropout=1", r"'lora\.dropout'.*less than 1, got 1"),
        ("train.schedule=linaer", r"'train\.schedule'.*got 'linaer'\. Did you mean 'linear'\?"),
        ("quantization.format=nf5", r"'quantization\.format'.*Did you mean 'nf4'\?"),
        ("lora.target_modules=q_proj", r"'lora\.target_modules'.*'all-linear' or a list"),
        ("lora.target_modules=[]", r"'lora\.target_modules'.*'all-linear' or a list"),
        ("lora.target_modules=[1]", r"'lora\.target_modules'.*'all-linear' or a list"),
        ("evaluation.stride=999", r"stride \(999\) exceeds context \(256\)"),
        ("seed=-1", r"'seed'.*greater than or equal to 0"),
        ("seed=4294967296", r"'seed'.*less than 4294967296"),
        ("data.name=", r"'data\.name'.*at least 1 character"),
        ("train.max_steps=[1", r"--set train\.max_steps line 1 is not valid YAML"),
        ("quantization.format=none", r"quantization\.format is 'none'.*set it to nf4 or fp4"),
        ("quantization.format=int8", r"quantization\.format is 'int8'.*set it to nf4 or fp4"),
        ("=3", r"'=3' is no assignment.*--set key=value"),
        ("train.max_steps", r"'train\.max_steps' is no assignment"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(assignment, said):
    assert re.search(said, refused(lambda: settings_with(assignment)))


@pytest.mark.parametrize("arm", ["full", "lora"])
def test_a_method_on_wide_weights_refuses_a_quantized_base(arm):
    assert "use qlora" in refused(lambda: settings_with("quantization.format=nf4", arm=arm))


@given(st.sampled_from(dotted_keys(Settings)), st.data())
def test_any_key_with_a_letter_left_out_is_refused_with_a_hint(key, data):
    i = data.draw(st.integers(0, len(key) - 1))
    misspelt = key[:i] + key[i + 1 :]
    if misspelt in dotted_keys(Settings):
        return
    line = refused(lambda: settings_with(f"{misspelt}=1")) if misspelt.strip() else "unknown key"
    assert "unknown key" in line and repr(misspelt).strip("'") in line


# --- files ---------------------------------------------------------------------------------------


def test_a_profile_file_of_the_users_own(own):
    profile = own("max_steps: 6", "max_steps: 7\n  learning_rate: 1e-4")
    assert (profile.name, profile.train.max_steps, profile.train.learning_rate) == ("mine", 7, 1e-4)
    assert own("title: A dry", "name: other\ntitle: A dry").name == "other"


@pytest.mark.parametrize("change", [lambda t: t.replace("\n", "\r\n"), lambda t: "\ufeff" + t, lambda t: t + "\n\n# end"])
def test_line_ends_marks_and_comments_do_not_matter(tmp_path, change):
    (tmp_path / "smoke.yaml").write_bytes(change(SMOKE).encode())
    assert load_profile(str(tmp_path / "smoke.yaml")) == load_profile("smoke")


def test_anchors_and_merges_are_yaml_too(own):
    profile = own("lora: {rank: 4, alpha: 8,", "lora: {<<: {rank: 9}, alpha: 8,")
    assert profile.lora.rank == 9


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("model: {", "modle: {", r"unknown key 'modle' in profile 'mine'\. Did you mean 'model'\?"),
        ("\ntrain:", "\ntrian:", r"unknown key 'trian'.*Did you mean 'train'\?"),
        ("lora: {rank", "lora: {ranks", r"unknown key 'lora\.ranks'.*Did you mean 'lora\.rank'\?"),
        ("memory_gib", "memory_gb", r"unknown key 'needs\.memory_gb'.*Did you mean 'needs\.memory_gib'\?"),
        ("seed: 0", "seed: 0\nsearch: {rate: {}, record: a.json}", r"'search\.rate'.*Did you mean 'search\.rates'\?"),
        ("seed: 0", "seed: 0\nmax_steps: 3", r"unknown key 'max_steps'.*Did you mean 'train\.max_steps'\?"),
        ("seed: 0", "seed: 0\n7: 3", r"'7' in profile 'mine'"),
        ('label: "LoRA"', 'lable: "LoRA"', r"unknown key 'arms\.lora\.lable'.*Did you mean 'label'\?"),
        ("method: lora", "method: lorra", r"'arms\.lora\.method'.*Did you mean 'lora'\?"),
        ("train.learning_rate: 1.0e-3", "train.learning_rat: 1.0e-3", r"unknown key 'train\.learning_rat' in arm 'full'.*'train\.learning_rate'"),
        ("train.learning_rate: 1.0e-3", "train: {learning_rate: 1.0e-3}", r"'train' in arm 'full'.*is a section"),
        ("train.learning_rate: 1.0e-3", "train.learning_rate: quick", r"'train\.learning_rate' in arm 'full'.*number, got 'quick'"),
        ("quantization.format: nf4, train", "train", r"quantization\.format is 'none' in arm 'qlora'"),
        ("model: {name: tiny-random}", "model: tiny-random", r"'model'.*expected keys and values, got 'tiny-random'"),
        ("title: A", "titel: A", r"unknown key 'titel'.*Did you mean 'title'\?"),
        ("seed: 0", "seed: '0'", r"'seed'.*integer, got '0'"),
        ("derived_from: full", "derived_from: ful", r"derives from 'ful', which is no earlier arm"),
        ("derived_from: full", "derived_from: base", r"derives from 'base', which trains nothing"),
        ('label: "Full"\n', 'label: "Full"\n    runs: false\n', r"arm 'full' does not run: say why"),
        ('label: "Full"\n', 'label: "Full"\n    runs: false\n    why: too large\n', r"derives from 'full', which trains nothing"),
        ("name: qlora\n", "name: lora\n", r"two arms have the same name"),
        ("name: qlora\n", "name: a/b\n", r"'arms\.a/b\.name'.*pattern"),
        ("seed: 0", "seed: 0\nname: ../../elsewhere", r"'name'.*pattern.*'\.\./\.\./elsewhere'"),
        ("seed: 0", "seed: 0\nsearch: {rates: {qlroa: [1e-4]}, record: a.json}", r"'search\.rates\.qlroa'.*Did you mean 'qlora'\?"),
        ("seed: 0", "seed: 0\nsearch: {rates: {qlora: []}, record: a.json}", r"'search\.rates\.qlora'.*at least 1"),
        ("seed: 0", "seed: 0\nsearch: {rates: {qlora: [-1]}, record: a.json}", r"'search\.rates\.qlora\.0'.*greater than 0"),
        ("seed: 0", "seed: 0\nsearch: {rates: {qlora: [1e-4]}, record: ../a.json}", r"'search\.record'.*pattern"),
        ("seed: 0", "seed: 0\nseed: 1", r"mine\.yaml line 10 is not valid YAML: the key 'seed' is given twice"),
        ("max_steps: 6", "max_steps: 6\n  max_steps: 7", r"the key 'max_steps' is given twice"),
        ("seed: 0", "seed: 2024-99-99", r"not valid YAML: month"),
        ("seed: 0", "seed: *nowhere", r"mine\.yaml line \d+ is not valid YAML: found undefined alias"),
        ("seed: 0", "seed: !!python/object:os.system {}", r"not valid YAML: could not determine a constructor"),
        ("seed: 0", "\tseed: 0", r"mine\.yaml line \d+ is not valid YAML"),
    ],
)
def test_a_wrong_profile_is_one_line_that_names_the_key(own, old, new, said):
    line = refused(lambda: own(old, new))
    assert re.search(said, line), line


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "expected keys and values at the top level"),
        (b"- a\n- b\n", "expected keys and values at the top level"),
        (b"\xff\xfe\x00a", "cannot be read as text"),
        (b"a: \x00\n", "not valid YAML"),
        (b"a: " + b"[" * 1000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path, content, said):
    (tmp_path / "mine.yaml").write_bytes(content)
    assert said in refused(lambda: load_profile(str(tmp_path / "mine.yaml")))


@pytest.mark.parametrize(
    "name, said",
    [
        ("smok", "Did you mean 'smoke'?"),
        ("", "Choose from: demo, smoke"),
        ("../smoke", "unknown profile '../smoke'"),
        ("nowhere.yaml", "no profile file at nowhere.yaml"),
        ("tests", "unknown profile 'tests'"),
    ],
)
def test_a_profile_that_is_not_there(name, said):
    assert said in refused(lambda: load_profile(name))


def test_an_unknown_arm_or_method_names_the_nearest():
    profile = load_profile("demo")
    assert "Did you mean 'qlora'?" in refused(lambda: profile.arm("qlroa"))
    assert "Did you mean 'lora'?" in refused(lambda: profile.arm_of_method("loora"))
    # An arm that is only declared is not what `--method full` runs.
    assert load_profile("t4-tinyllama-wikitext2").arm_of_method("full").name == "full"


def test_results_may_be_kept_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("QLORA_RESULTS", "~/kept")
    assert results_dir("demo") == tmp_path.resolve() / "kept" / "demo"


def test_a_sweep_is_one_arm_for_each_combination_and_seed(own):
    sweep = "sweeps:\n  - {name: try, label: Try, method: lora, set: {lora.alpha: 4.0}, vary: {lora.rank: [2, 8], train.learning_rate: [1.0e-3, 2.0e-3]}, seeds: [0, 3]}\narms:"
    profile = own("arms:", sweep)
    made = [a for a in profile.arms if a.name.startswith("try-")]
    settings = [profile.settings(a) for a in made]
    assert len(made) == len({a.name for a in made}) == 8 and made[0].name == "try-2-0.001-s0"
    assert {(s.lora.rank, s.train.learning_rate, s.seed) for s in settings} == set(itertools.product((2, 8), (1e-3, 2e-3), (0, 3)))
    assert {s.lora.alpha for s in settings} == {4.0}
    assert profile.arms_like(["try-2-*", "base"]) == ["base", *(a.name for a in made if a.name.startswith("try-2-"))]
    with pytest.raises(UsageError, match="no arm like 'tyr-\\*'"):
        profile.arms_like(["tyr-*"])


@pytest.mark.parametrize("vary, said", [("{lora.rnak: [2]}", "lora.rank"), ("{lora.rank: []}", "vary"), ("{lora.rank: [-1]}", "lora.rank")])
def test_a_sweep_that_cannot_run_is_told_at_once(own, vary, said):
    with pytest.raises(UsageError, match=said):
        own("arms:", f"sweeps:\n  - {{name: try, label: Try, method: lora, vary: {vary}}}\narms:")
