"""How large a step, how it grows and shrinks, and how many tokens go into one. Optuna learns where to look."""

from ray import tune

SPACE = {
    "student.training.learning_rate": tune.loguniform(1e-4, 1e-2),
    "student.training.schedule": tune.choice(["linear", "cosine", "constant_with_warmup"]),
    "student.training.warmup_ratio": tune.uniform(0.0, 0.2),
    "student.training.batch_tokens": tune.choice([1024, 2048, 4096]),
    "student.training.weight_decay": tune.loguniform(1e-3, 1e-1),
}
SEARCH = {"kind": "optuna", "trials": 16}
SCHEDULER = {"kind": "asha", "grace": 25, "reduction": 2}
