"""Bounded reading of a user's files; the faults are in tests/faults."""

import pytest
import yaml

from understudy.errors import RunError, is_out_of_memory
from understudy.reading import parse_yaml, read_rows, read_text


def test_an_alias_that_multiplies_little_is_fine():
    assert parse_yaml("a: &a [1, 2]\nb: [*a, *a]\n<<: {c: 3}\n") == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": 3}


def test_the_depth_is_that_with_aliases_filled_in():
    chain = "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60))
    with pytest.raises(yaml.YAMLError, match="more than 40 levels"):
        parse_yaml(f"a0: &a0 [x]\n{chain}")
    assert parse_yaml("[" * 40 + "]" * 40) is not None
    with pytest.raises(yaml.YAMLError, match="more than 40 levels"):
        parse_yaml("[" * 41 + "]" * 41)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_text("cat\n", encoding="utf-8-sig")
    assert read_text(tmp_path / "a.txt") == "cat\n"


def test_rows_without_their_last_line_break_are_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("step,loss\n1,2\n2,")
    assert read_rows(tmp_path / "a.csv") == [{"step": "1", "loss": "2"}]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("shapes differ"), False),
        (RunError("The disk is full"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_failed_allocations_are_recognised(error, expected):
    assert is_out_of_memory(error) is expected
