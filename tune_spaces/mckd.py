"""How many partitions and stages has MCKD? Every combination; for `method: {kind: mckd}`."""

from ray import tune

SPACE = {"method.partitions": tune.choice([2, 3, 4]), "method.stages": tune.choice([2, 3])}
SEARCH = {"kind": "grid"}
SCHEDULER = {"kind": "none"}  # rounds before the last train students that say nothing of the final one
