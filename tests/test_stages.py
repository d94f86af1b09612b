"""The table of where the time went: it adds up, and says what came from the cache."""

from example_records import example_records
from qlora_lib.stages import Stage, arm_stage, summed, to_text


def test_what_an_arm_took_is_split_as_its_record_says_and_adds_up():
    record = example_records("smoke")["qlora"]
    record.provenance.stage_seconds = {"start": 1.0, "load": 2.0, "train": 6.0, "peak": 0.4}
    arm = arm_stage("QLoRA", 10.0, False, record)
    assert {p.name: p.seconds for p in arm.parts} == {"train": 6.0, "load": 2.0, "start": 1.0, "other": 1.0}
    assert arm_stage("QLoRA", 0.1, True, record) == Stage("QLoRA", 0.1, True)  # what it took once is not what it took now


def test_a_record_without_stages_is_one_part():
    record = example_records("smoke")["qlora"]
    record.provenance.stage_seconds = {}
    assert arm_stage("QLoRA", 10.0, False, record).parts == [Stage("other", 10.0)]


ARMS = [
    Stage("Full", 0.2, True),
    Stage("LoRA", 30.0, False, [Stage("train", 20.0), Stage("load", 10.0)]),
    Stage("QLoRA", 10.0, False, [Stage("train", 4.0), Stage("load", 6.0)]),
]


def test_parts_are_added_up_by_name_the_longest_first():
    assert summed(ARMS) == [Stage("train", 24.0), Stage("load", 16.0)]


def test_the_table():
    notebooks = Stage("notebooks", 0.3, True, [Stage("05_comparison", 0.1, True), Stage("06_inference", 0.1, True)])
    table = to_text([Stage("arms", 40.2, False, ARMS), notebooks, Stage("figures", 9.5)])
    assert table.splitlines() == [
        "where the time went  seconds  share",
        "arms                    40.2   80 %  2 run, 1 cached",
        "  Full                   0.2    0 %  cached",
        "  LoRA                  30.0   60 %  run: train 20.0, load 10.0",
        "  QLoRA                 10.0   20 %  run: load 6.0, train 4.0",
        "  all of these                       train 24.0, load 16.0",
        "notebooks                0.3    1 %  2 cached",
        "  05_comparison          0.1    0 %  cached",
        "  06_inference           0.1    0 %  cached",
        "figures                  9.5   19 %  run",
        "in all                  50.0",
    ]
