"""Task files: what they say, and what is wrong with them, in one line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vla_rl.errors import UserError
from vla_rl.sim.libero.bddl import categories, number, read_problem

SUITE = Path(__file__).parents[2] / "data" / "suite"
TASK = SUITE / "milk_beside_soup.bddl"


def test_a_file_says_what_there_is_and_what_to_do():
    problem = read_problem(TASK)
    assert problem.name == "libero_floor_manipulation"
    assert problem.instruction == "put the milk in the basket"
    assert problem.objects == {"milk_1": "milk", "alphabet_soup_1": "alphabet_soup", "basket_1": "basket"}
    assert problem.fixtures == {"floor": "floor"}
    assert problem.goal == (("in", "milk_1", "basket_1_contain_region"),)


def test_libero_has_a_class_for_each_category():
    assert len(categories()) == 50
    assert {"chefmate_8_frypan", "flat_stove", "akita_black_bowl", "target_zone"} <= categories()


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.5", 0.5), ("-3", -3), ("np.pi", math.pi), ("-pi/2", -math.pi / 2), ("2*np.pi-0.5", 2 * math.pi - 0.5)],
)
def test_numbers(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').getcwd()",
        "np.e",
        "os.pi",
        "9**9",
        "1e999",
        "1/0",
        "true",
        "1j",
        "'1'",
        "",
        "-" * 81 + "1",
        "1_",
    ],
)
def test_anything_but_arithmetic_is_no_number(text):
    with pytest.raises(ValueError, match="is no number"):
        number(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(:goal", ")(:goal", "does not parse: a parenthesis is closed that was not opened"),
        ("(:goal", "((:goal", "does not parse: parentheses are not closed: 1"),
        ("(define", "(defined", "does not parse: it must be .define"),
        ("LIBERO_Floor", "LIBERO_Roof", "is of problem .libero_roof_manipulation.; LIBERO knows libero_floor"),
        ("(:domain robosuite)", "(:domain kitchen)", "is of domain .kitchen.; LIBERO knows robosuite"),
        ("(:language Put the milk in the basket)", "", r"has no \(:language ...\)"),
        ("(:language Put the milk in the basket)", "(:language)", "has no instruction"),
        ("- milk", "- mlik", r"objects that LIBERO does not know: mlik\b"),
        ("- alphabet_soup", "- aphabet_soup", r"know: aphabet_soup \(did you mean 'alphabet_soup'\?\)"),
        ("floor - floor", "floor - floor oven_1 - oven", "fixtures that LIBERO does not know: oven"),
        ("basket_1 - basket", "basket_1", r"gives no category to basket_1 in \(:objects ...\)"),
        ("(On milk_1 floor_left", "(Stack milk_1 floor_left", r"a predicate in \(:init ...\) .* not know: stack;"),
        ("(And (In milk_1", "(Or (In milk_1", r"\(or \(in milk_1 basket_1_contain_region\)\) in \(:goal ...\)"),
        ("(In milk_1 basket_1", "(Lift milk_1 basket_1", r"a predicate in \(:goal ...\) .* not know: lift;"),
        ("(In milk_1 basket_1_contain_region)", "(In milk_1)", r"has \(in milk_1\) in \(:goal ...\), but in takes 2"),
        ("(In milk_1 basket_1_c", "(In butter_1 basket_1_c", r"in \(:goal ...\) what it does not declare: butter_1"),
        ("floor_left_region)", "floor_west_region)", "does not declare: floor_west_region"),
        ("(:goal (And (In milk_1 basket_1_contain_region)))", "(:goal (And))", "has an empty goal"),
        ("(0.0 -np.pi/2)", "(0.0 exit())", r"has a region left_region with \(:yaw_rotation"),
        ("(0.0 -np.pi/2)", "(0.0 print)", "has a region left_region in which 'print' is no number"),
        ("(0.05 -0.15 0.15 -0.05)", "(0.05 -0.15 0.15)", r"whose range is \(0.05 -0.15 0.15\), not four numbers"),
        ("(0.05 -0.15 0.15 -0.05)", "(0.05 -0.15 -0.15 -0.05)", "ends before it begins"),
        ("(:target basket_1)", "(:ranges ())", r"a region contain_region without \(:target ...\)"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file_and_what_is_wrong(tmp_path, old, new, message):
    text = TASK.read_text()
    assert old in text
    path = tmp_path / "task.bddl"
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message) as found:
        read_problem(path)
    assert str(path) in str(found.value) and "\n" not in str(found.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(UserError, match="gone.bddl cannot be read: No such file"):
        read_problem(tmp_path / "gone.bddl")
    (tmp_path / "bytes.bddl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="bytes.bddl cannot be read: it is not UTF-8"):
        read_problem(tmp_path / "bytes.bddl")
