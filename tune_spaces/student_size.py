"""How small may the student be? Quality against parameters, for T5-style students from random weights."""

from ray import tune

SPACE = {
    "student.model.settings.d_model": tune.choice([32, 64, 96, 128]),
    "student.model.settings.num_layers": tune.choice([1, 2, 3, 4]),
    "student.model.settings.num_decoder_layers": tune.choice([1, 2, 3]),
    "student.training.learning_rate": tune.loguniform(1e-3, 5e-3),
}
GOAL = [{}, {"metric": "parameters"}]
SEARCH = {"kind": "optuna", "trials": 16}
SCHEDULER = {"kind": "none"}
