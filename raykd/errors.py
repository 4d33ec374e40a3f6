"""Every error that raykd raises on purpose. Each message is one line that a person can act on.

RaykdError
├── RecipeError    a recipe that cannot be run: names the field, the value found, the value expected
├── DataError      rows that cannot be used: names the file and the line
├── ModelError     a model or tokenizer that is missing or does not fit
├── StoreError     a pseudo-target store that is damaged or was written by something else
├── EngineError    an engine that cannot generate
│   └── EngineDead   an engine that died or hangs
├── TrainingError  a training that cannot go on
├── ClusterError   more resources asked for than the cluster can have
└── RunError       a run folder that holds another recipe, or no run at all
"""


class RaykdError(Exception):
    """Base of all errors that are shown to the user as one line, without a traceback."""


class RecipeError(RaykdError):
    """A recipe that cannot be run."""


class DataError(RaykdError):
    """Rows that cannot be used."""


class ModelError(RaykdError):
    """A model or tokenizer that is missing or does not fit."""


class StoreError(RaykdError):
    """A pseudo-target store that is damaged or was written by something else."""


class EngineError(RaykdError):
    """An engine that cannot generate."""


class EngineDead(EngineError):
    """An engine that died or hangs: opening it again may help."""


class TrainingError(RaykdError):
    """A training that cannot go on."""


class ClusterError(RaykdError):
    """More resources asked for than the cluster can have."""


class RunError(RaykdError):
    """A run folder that cannot be used."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class's name; of the errors of several workers the last one's."""
    inner, failures = error, getattr(error, "failures", None)
    if isinstance(failures, dict):  # by worker, of torch.distributed.checkpoint
        for failure in failures.values():
            inner = failure[0] if isinstance(failure, tuple) else failure
    return (str(inner).splitlines() or [type(inner).__name__])[0]


def last_line(error: BaseException) -> str:
    """The last line of an error's message, where nested checks name the cause; a bare key gets its class's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return line if " " in line else f"{type(error).__name__}: {line}" if line else type(error).__name__


LASTING = (  # errors of Python that the same call raises again
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ImportError,
    NotImplementedError,
    AssertionError,
    NameError,
    ArithmeticError,
    RecursionError,
)
PASSING_WORDS = (
    "nccl",
    "gloo",
    "cuda",
    "connection",
    "timed out",
    "timeout",
    "out of memory",
    "process group",
    "tcpstore",
)
# torch raises plain RuntimeErrors for shapes and types of tensors; of any other the cause is not known
LASTING_WORDS = (
    "shape",
    "size",
    "dtype",
    "scalar type",
    "dimension",
    "must match",
    "expected",
    "state_dict",
    "grad_fn",
)


def comes_again(error: BaseException) -> bool:
    """Whether the same work would end with this error again, so that a retry only costs time.

    False for lost workers, connections, disks and memory, and where the cause is not known.
    """
    if isinstance(error, EngineDead):
        return False
    if isinstance(error, (RaykdError, *LASTING)):
        return True
    if type(error) is not RuntimeError:  # its subclasses are of CUDA, of memory and of torch.distributed
        return False
    text = str(error).lower()
    return not any(word in text for word in PASSING_WORDS) and any(word in text for word in LASTING_WORDS)
