"""Hostile profiles through every command that reads one."""

from hostile import anything, as_json, damaged, files, inputs
from hypothesis import example, given
from hypothesis import strategies as st

from qlora_lib.config import PROFILES_DIR

SMOKE = (PROFILES_DIR / "smoke.yaml").read_bytes()
SMALL = {
    "title": "t", "about": "a", "hardware": "any CPU", "needs": {"memory_gib": 2, "disk_gib": 1.5, "download_mb": 0},
    "model": {"name": "tiny-random"}, "data": {"name": "tiny-text", "window_length": 32}, "seed": 0,
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.05, "target_modules": ["q_proj"], "use_rslora": False},
    "train": {"max_steps": 2, "batch_size": 1, "learning_rate": 0.001, "epochs": 1.0, "optimizer": "adamw_8bit", "schedule": "linear"},
    "evaluation": {"context": 32, "stride": 32, "windows": 2, "prompt": "x"}, "runtime": {"threads": 1, "fast": False},
    "search": {"rates": {"lora": [0.001, 0.01]}, "record": "found.json"},
    "arms": [
        {"name": "base", "label": "Base", "method": "base"},
        {"name": "lora", "label": "LoRA", "method": "lora", "set": {"train.learning_rate": 0.01}},
        {"name": "qlora", "label": "QLoRA", "method": "qlora", "set": {"quantization.format": "nf4"}},
        {"name": "next", "label": "Then", "method": "base", "derived_from": "lora"},
        {"name": "never", "label": "Not", "method": "full", "runs": False, "why": "too large"},
    ],
    "sweeps": [{"name": "rank", "label": "Ranks", "method": "lora", "set": {}, "vary": {"lora.rank": [2, 4], "lora.alpha": [8.0]}, "seeds": [0, 1]}],
}  # fmt: skip


def bomb(width: int, depth: int, form: str = "[{}]", tail: str = "") -> bytes:
    """Each line holds the one before `width` times: width ** depth values, were they written out."""
    rows = ["a0: &a0 [x]"] + [
        f"a{i}: &a{i} {form.format(', '.join([f'*a{i - 1}'] * width))}"
        for i in range(1, depth)
    ]
    return "\n".join([*rows, tail]).encode()


LAUGHS = bomb(9, 12)
IN_PLACE = as_json(SMALL)[:-1] + b', "lora": {"rank": &a [x], "alpha": *a}}'
BOMBS = (
    LAUGHS, LAUGHS + b"\ntitle: *a11", b"title: " + b"&a [*a]", b"title: &a {a: *a}", bomb(9, 12, "{{<<: [{}]}}"),
    LAUGHS + b"\nseed: *a11\n", SMOKE + b"\n" + LAUGHS, SMOKE.replace(b"seed: 0", LAUGHS + b"\nseed: *a11"),
    SMOKE.replace(b"rank: 4", b"rank: [" + b"&b [" * 5 + b"*b" + b"]" * 6), SMOKE + b"\nsearch: &s {rates: *s, record: a.json}",
    SMOKE.replace(b"name: tiny-text", b"name: &n [*n, *n]"), SMOKE.replace(b"seed: 0", b"seed: 0x" + b"f" * 5000),
    SMOKE.replace(b"seed: 0", b"seed: !!python/object/apply:os.system ['touch /tmp/x']"), SMOKE + b"\nseed: 1\n", SMOKE + b"\n---\nseed: 1\n",
    SMOKE.replace(b"seed: 0", b"seed: 1:2:3:4"), SMOKE.replace(b"seed: 0", b"seed: 2001-99-99"), SMOKE.replace(b"seed: 0", b"? [a]\n: 1"),
    SMOKE.replace(b"seed: 0", b"? {a: 1}\n: 1"), SMOKE.replace(b"seed: 0", b"1: 2\nnull: 3\n1.5: 4"), SMOKE.replace(b"seed: 0", b"=: 4"),
    SMOKE.replace(b"seed: 0", b"<<: 4"), SMOKE.replace(b"seed: 0", b"<<: [1]"), b"%YAML 9.9\n---\na: 1", b"a: *b", b"!!binary x: 1", b"!!set {a, b}",
    SMOKE + b"\nsweeps: [{name: s, label: s, method: lora, vary: {" + b", ".join(b"k%d: [%s]" % (i, b"1, " * 9 + b"1") for i in range(12)) + b"}}]",
    as_json(SMALL | {"sweeps": [SMALL["sweeps"][0] | {"seeds": list(range(2000))}]}),
)  # fmt: skip
texts = st.one_of(
    files(SMALL),
    damaged(SMOKE),
    st.sampled_from(BOMBS),
    st.sampled_from(BOMBS).flatmap(damaged),
    anything,
)
DOORS = (
    ("plan", "--profile", "FILE"), ("plan", "--profile", "FILE", "--json", "--gpu", "T4"), ("train", "--profile", "FILE", "--method", "lora", "--out", "run"),
    ("train", "--profile", "FILE", "--arm", "qlora", "--out", "run", "--set", "lora.rank=3"), ("fetch", "--profile", "FILE"), ("search", "--profile", "FILE"),
    ("sweep", "--profile", "FILE", "--only", "r*"), ("run", "--profile", "FILE", "--only", "05"),
)  # fmt: skip


def test_the_small_profile_is_good(doors):
    """Else everything would be refused for the same reason."""
    (doors.fresh() / "own.yaml").write_bytes(as_json(SMALL))
    assert doors.call("plan", "--profile", "own.yaml").code == 0
    for door in DOORS[2:]:
        assert "stopped by the test" in doors.call(
            *[w.replace("FILE", "own.yaml") for w in door]
        ).err or door[0] in ("fetch", "sweep")


@inputs(0.17)
@given(text=texts, door=st.sampled_from(DOORS))
@example(text=BOMBS[1], door=DOORS[0])
@example(text=BOMBS[7], door=DOORS[0])
@example(text=BOMBS[11], door=DOORS[0])
@example(text=BOMBS[-2], door=DOORS[0])
@example(text=BOMBS[-1], door=DOORS[0])
def test_profiles(doors, count, text, door):
    (doors.fresh() / "own.yaml").write_bytes(text)
    count("profiles")
    doors.call(*[w.replace("FILE", "own.yaml") for w in door])
