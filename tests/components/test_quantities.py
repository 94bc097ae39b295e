import doctest
import subprocess
import sys

import pytest

from components import quantities as module
from components.quantities import FACTS, QUANTITIES, Quantities, lazy


class Counted:
    """A lazy value that counts how often it was computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, quantities: Quantities) -> int:
        self.calls += 1
        return quantities["a"] * 10


class TestQuantities:
    def test_is_a_mapping(self):
        quantities = Quantities({"a": 1}, b=2)
        assert dict(quantities) == {"a": 1, "b": 2}
        assert len(quantities) == 2
        assert "a" in quantities
        assert "c" not in quantities
        assert quantities.get("c") is None
        with pytest.raises(KeyError, match="c"):
            quantities["c"]

    def test_keywords_win_over_the_mapping(self):
        assert Quantities({"a": 1}, a=2)["a"] == 2

    def test_a_lazy_member_is_computed_once_and_only_when_asked_for(self):
        counted = Counted()
        quantities = Quantities(a=1, b=lazy(counted))
        assert "b" in quantities
        assert list(quantities) == ["a", "b"]
        assert counted.calls == 0
        assert quantities["b"] == quantities["b"] == 10
        assert counted.calls == 1

    def test_replacing_computes_lazy_members_anew_and_leaves_the_original(self):
        counted = Counted()
        quantities = Quantities(a=1, b=lazy(counted))
        assert quantities["b"] == 10
        replaced = quantities.replace(a=2)
        assert replaced["b"] == 20
        assert quantities["b"] == 10
        assert quantities["a"] == 1
        assert counted.calls == 2

    def test_lazy_members_may_lean_on_each_other(self):
        quantities = Quantities(c=lazy(lambda q: q["b"] + 1), b=lazy(lambda q: q["a"] + 1), a=1)
        assert quantities["c"] == 3
        assert quantities.replace(b=10)["c"] == 11

    def test_a_lazy_member_may_be_none(self):
        calls = []
        quantities = Quantities(a=lazy(lambda q: calls.append(1)))
        assert quantities["a"] is None
        assert quantities["a"] is None
        assert len(calls) == 1

    def test_its_examples_hold(self):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


class TestVocabulary:
    @pytest.mark.parametrize("names", [QUANTITIES, FACTS])
    def test_names_are_identifiers_with_a_meaning(self, names):
        for name, meaning in names.items():
            assert name.isidentifier()
            assert len(meaning) > 5

    def test_a_name_is_a_quantity_or_a_fact(self):
        assert not set(QUANTITIES) & set(FACTS)

    def test_reading_it_imports_no_torch(self):
        code = "import sys, components.quantities, components.validation; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
