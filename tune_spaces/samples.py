"""How many samples of the teacher does each input need? The teacher writes the most once; fewer are read from those."""

from ray import tune

SPACE = {
    "teachers.main.passes.pseudo_targets.temperature": 1.0,
    "teachers.main.passes.pseudo_targets.n": tune.choice([1, 2, 4, 8]),
    "student.training.sequences.union": tune.choice(
        [[{"pass": "pseudo_targets", "samples": "rotate"}], [{"pass": "pseudo_targets", "samples": "all"}]]
    ),
}
SEARCH = {"kind": "grid"}
SCHEDULER = {"kind": "none"}
