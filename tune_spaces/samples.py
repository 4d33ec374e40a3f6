"""How many samples of the teacher does each input need? The teacher writes the most once; fewer are read from those."""

from ray import tune

SPACE = {
    "teachers.main.passes.pseudo_targets.temperature": 1.0,
    "teachers.main.passes.pseudo_targets.n": tune.choice([1, 2, 4, 8]),
    "student.training.sequences.samples": tune.choice(["rotate", "all"]),
}
SEARCH = {"kind": "grid"}
SCHEDULER = {"kind": "none"}
