"""Which errors are tried again."""

import errno

import pytest
import torch

from raykd.errors import DataError, EngineDead, EngineError, comes_again, first_line, last_line

AGAIN = [
    *(DataError("row 3"), EngineError("no key"), ValueError("x"), TypeError("x"), KeyError("x"), IndexError("x")),
    *(AttributeError("x"), ImportError("x"), ModuleNotFoundError("x"), NotImplementedError("x"), AssertionError("x")),
    *(ZeroDivisionError("x"), RecursionError("x"), UnicodeDecodeError("utf-8", b"x", 0, 1, "no")),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 1"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("expected scalar type Float but found Double"),
]
PASSING = [
    *(EngineDead("it died"), OSError(errno.ENOSPC, "No space left on device"), ConnectionResetError("peer")),
    *(TimeoutError("x"), MemoryError(), KeyboardInterrupt(), SystemExit(1), BrokenPipeError("x"), RuntimeError("?")),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer, expected size 4"),
    RuntimeError("NCCL error: unhandled system error, expected 0"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    torch.distributed.DistBackendError("NCCL communicator was aborted"),
    torch.distributed.DistNetworkError("The client socket has timed out"),
]


@pytest.mark.parametrize("error", AGAIN, ids=repr)
def test_an_error_that_would_be_the_same_is_not_tried_again(error):
    assert comes_again(error)


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again(error):
    assert not comes_again(error)


def test_shapes_that_torch_refuses_come_again():
    with pytest.raises(RuntimeError) as error:
        torch.zeros(2, 3) @ torch.zeros(4, 5)
    assert comes_again(error.value)
    with pytest.raises(IndexError) as error:
        torch.nn.functional.embedding(torch.tensor([9]), torch.zeros(3, 2))
    assert comes_again(error.value)


def test_lines_of_errors():
    nested = ValueError("Class validation error:\n    ValueError: the size (64) is wrong\n")
    assert (first_line(nested), last_line(nested)) == ("Class validation error:", "ValueError: the size (64) is wrong")
    assert (last_line(KeyError("x")), last_line(ValueError())) == ("KeyError: 'x'", "ValueError")
