"""Which loss, and how large a step? For `method: {kind: distill}`, and a teacher whose vocabulary the student shares.

Losses cannot be compared by themselves: give student.training.dev_metrics, of which the first is the goal. Where the
recipe's losses need a teacher, its student.training.teacher is that of the trials that need one; cross entropy needs
none, and sets it back to the default.
"""

from ray import tune

SPACE = {
    "student.training.learning_rate": tune.loguniform(1e-3, 1e-2),
    "loss": {
        "cross_entropy": {
            "student.training.losses": {"cross_entropy": {}},
            "student.training.teacher": {"kind": "store"},
        },
        "forward_kl": {
            "student.training.losses": {"forward_kl": {}},
            "student.training.losses.forward_kl.temperature": tune.uniform(1.0, 2.0),
        },
        "jsd": {
            "student.training.losses": {"jsd": {}},
            "student.training.losses.jsd.beta": tune.uniform(0.1, 0.9),
        },
    },
}
SEARCH = {"kind": "random", "trials": 12}
SCHEDULER = {"kind": "asha", "grace": 25, "reduction": 2}
