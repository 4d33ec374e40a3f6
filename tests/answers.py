"""What the scripted engine answers in tests."""

import os
import time
from pathlib import Path

from conftest import word

from raykd.data.tasks.formats import Format
from raykd.errors import EngineDead


def _capitals(text: str, answer: str) -> str | None:
    if answer.isupper() and len(answer.split()) == len(text.split()):
        return None
    return f"{answer!r} is not {len(text.split())} capitals"


CAPITALS = Format(_capitals, lambda text, answer: " ".join([*answer.upper().split(), *text.upper().split()]))


def careless(prompt: str, sample: int) -> str:
    """The input in capitals; of every third input the first samples are no capitals, of the last ones all are wrong."""
    number, text = sum(map(ord, prompt)) % 9, prompt.removesuffix(" =>")
    if number in (0, 3, 6) and sample < 3:
        return text
    return text.upper() if number != 1 and sample != 1 else "A " + " ".join(text.upper().split()[1:])


def refuse(prompt: str, sample: int) -> str:
    """The prompt, but for one that is refused."""
    if prompt == f"{word(7)} =>":
        raise ValueError("too long")
    return prompt


def numbered(prompt: str, sample: int) -> str:
    """The prompt in capitals, and the sample's number."""
    return f"{prompt.upper()} {sample}"


def once(prompt: str) -> bool:
    """Whether this is the first time for the file that the prompt ends in."""
    try:
        Path(prompt.split()[-1]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def dies(prompt: str, sample: int) -> str:
    """As numbered; the engine dies in the middle, once."""
    if prompt.startswith(f"{word(150)} ") and once(prompt):
        raise EngineDead("it died")
    return numbered(prompt, sample)


def dies_again(prompt: str, sample: int) -> str:
    """The engine dies whenever it is asked."""
    raise EngineDead("it died")


def takes_its_actor_along(prompt: str, sample: int) -> str:
    """As numbered; the process ends in the middle, once."""
    if prompt.startswith(f"{word(150)} ") and once(prompt):
        os._exit(1)
    return numbered(prompt, sample)


def placed(prompt: str, sample: int) -> str:
    """The GPUs that Ray gave to this process, after a while."""
    time.sleep(0.01)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def after_the_student(prompt: str, sample: int) -> str:
    """The input in capitals; to one input there is no answer before a training has logged a step."""
    text, awaited, path = prompt.split("|")
    until = time.monotonic() + 150
    while text == awaited and time.monotonic() < until:
        if Path(path).exists() and "step" in Path(path).read_text():
            break
        time.sleep(0.1)
    else:
        if text == awaited:
            return "nobody trained"
    return text.upper()


def slowly(prompt: str, sample: int) -> str:
    """The input in capitals, ten in a second."""
    time.sleep(0.1)
    return prompt.removesuffix(" =>").upper()
