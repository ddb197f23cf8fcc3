"""Values that are quick to make are dataclasses like any other."""

import copy
import inspect
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace

import pytest

from workflow_composer import types
from workflow_composer.support.fast_dataclass import changed, quick
from workflow_composer.types import Attempt, LLMRequest, Usage


def plain_and_quick():
    def make():
        @dataclass(frozen=True, slots=True)
        class Value:
            a: int
            b: str = "b"
            c: list = field(default_factory=list)
            d: int = field(default=4, kw_only=True)

        return Value

    return make(), quick(make())


def test_the_signature_is_that_of_the_dataclass():
    """Positional and keyword-only parameters, defaults and their order."""
    plain, made = plain_and_quick()
    for arguments, keywords in (((1,), {}), ((1, "x"), {"d": 5}), ((), {"a": 1, "c": [2]})):
        assert asdict(plain(*arguments, **keywords)) == asdict(made(*arguments, **keywords))
    ordinary = [p.name for p in inspect.signature(made).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert ordinary == ["a", "b", "c"]
    for wrong in ({}, {"a": 1, "e": 2}):
        with pytest.raises(TypeError):
            made(**wrong)


def test_a_factory_makes_a_new_value_each_time():
    """Defaults are not shared."""
    _, made = plain_and_quick()
    assert made(1).c is not made(1).c


def test_nothing_can_be_changed_afterwards():
    """They are frozen all the same."""
    with pytest.raises(FrozenInstanceError):
        Usage(1, 2).prompt_tokens = 3


def test_they_compare_copy_pickle_and_replace():
    """As the layers above expect of values."""
    attempt = Attempt(0, 1, "a", True, 2.0, Usage(1, 2))
    assert attempt == copy.deepcopy(attempt) == pickle.loads(pickle.dumps(attempt))
    assert replace(attempt, name="b").name == "b"
    assert hash(Usage(1, 2)) == hash(Usage(1, 2))
    assert "LLMRequest.__init__" in repr(LLMRequest.__init__)


def test_every_value_of_a_request_says_what_is_missing():
    """The errors of a wrong call name the class and the parameter."""
    with pytest.raises(TypeError, match="messages"):
        types.LLMRequest()


@quick
@dataclass(frozen=True, slots=True)
class Sized:
    """A value with a field that it computes itself."""

    text: str
    size: int = field(init=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "size", len(self.text))


@pytest.mark.parametrize("copied", [replace, changed, lambda value, **_: pickle.loads(pickle.dumps(Sized("long")))])
def test_a_computed_field_fits_its_value_however_that_was_made(copied):
    """It is no parameter, and it is computed again for a changed copy."""
    assert list(inspect.signature(Sized).parameters) == ["text"]
    assert (Sized("a").size, copied(Sized("a"), text="long").size) == (1, 4)
