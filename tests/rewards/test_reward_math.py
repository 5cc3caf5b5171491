r"""The reward "math", case by case. The scores are worked out by hand; the last column says how.

The answers here are harmless, so the reward is called in this process; tests/rewards/test_hostile.py has the others.
"""

import pytest
from reward_helpers import respond, say

from rewards import IN_PROCESS, PRELOAD, REWARDS, Unscorable

CASES = [  # answer, gold, score, why
    # numbers
    ("5", "5", 1, "the same"),
    ("5.0", "5", 1, "as a number"),
    ("$5$", "5", 1, "math marks"),
    ("5", "$5$", 1, "math marks in the gold"),
    (r"\frac{1}{2}", "0.5", 1, "fraction and decimal"),
    ("1/2", r"\frac{1}{2}", 1, "plain text"),
    (r"\frac12", r"\frac{1}{2}", 1, "arguments without braces"),
    (r"\dfrac{2}{4}", r"\frac{1}{2}", 1, "not in lowest terms"),
    (r"2\frac{1}{2}", "2.5", 1, "mixed number"),
    ("2 1/2", r"\frac{5}{2}", 1, "mixed number in plain text"),
    (r"-\frac{5}{3}", "-5/3", 1, "sign"),
    ("5/3", "-5/3", 0, "sign"),
    ("1,234", "1234", 1, "thousands"),
    (r"1{,}234", "1,234", 1, "thousands in LaTeX"),
    (r"3 \times 10^{5}", "300000", 1, "power of ten"),
    ("3e5", "300000", 1, "e notation"),
    ("0.333333", r"\frac{1}{3}", 1, "six decimals"),
    ("0.33", r"\frac{1}{3}", 0, "two decimals"),
    (r"0.\overline{3}", r"\frac{1}{3}", 1, "repeating decimals"),
    (r"0.1\overline{6}", r"\frac{1}{6}", 1, "0.1666... is 1/6"),
    ("3.14", r"\pi", 0, "an approximation"),
    ("12 7", "19", 0, "two numbers are no sum"),
    ("4(5)", "9", 0, "a product, 20"),
    ("4(5)", "20", 1, "a product"),
    (r"\left(\frac{1}{2}\right)\left(\frac{1}{2}\right)", r"\frac{1}{4}", 1, "a product of brackets"),
    ("10", "1", 0, "the gold is a part of the answer"),
    # tiny and huge: math-verify compares 6 decimals
    ("0.0000002", "0.0000001", 0, "twice as much"),
    (r"9.9 \times 10^{-34}", r"6.626 \times 10^{-34}", 0, "another constant"),
    (r"6.626 \times 10^{-34}", r"6.626e-34", 1, "the same constant"),
    (r"\{0.0000002\}", r"\{0.0000001\}", 0, "in a set too"),
    ("1000000007", "1000000008", 0, "integers are exact"),
    # roots, powers, logarithms
    (r"2\sqrt{2}", r"\sqrt{8}", 1, "2^2 * 2 = 8"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", 1, "rationalised"),
    ("sqrt(2)/2", r"\frac{\sqrt{2}}{2}", 1, "plain text"),
    (r"\sqrt2", "2^{1/2}", 1, "a root is a power"),
    ("2^(1/2)", r"\sqrt{2}", 1, "brackets around an exponent"),
    (r"\sqrt[3]{8}", "2", 1, "cube root"),
    ("2^10", "1024", 1, "two digits in an exponent"),
    ("2**10", "1024", 1, "Python's power"),
    (r"\log_2 8", "3", 1, "2^3 = 8"),
    (r"\log_{2}(8)", "3", 1, "with brackets"),
    (r"\ln e^{3}", "3", 1, "natural logarithm"),
    (r"\frac{3\pi}{4}", r"\frac{3}{4}\pi", 1, "order of factors"),
    (r"\binom{5}{2}", "10", 1, "5 * 4 / 2"),
    ("5!", "120", 1, "1 * 2 * 3 * 4 * 5"),
    # algebra
    ("(x+1)^2", "x^2+2x+1", 1, "multiplied out"),
    ("x(x+1)", "x^2+x", 1, "a letter before a bracket is a factor"),
    (r"\frac{x^2-1}{x-1}", "x+1", 1, "cancelled"),
    (r"\sin^2 x + \cos^2 x", "1", 1, "an identity"),
    ("x^2+2x-1", "x^2+2x+1", 0, "one sign"),
    ("2x+y", "2x+z", 0, "another letter"),
    ("y+2x", "2x+y", 1, "order"),
    ("x_1+x_2", "x_2+x_1", 1, "indices"),
    ("x_1", "x_2", 0, "another index"),
    ("(1+i)^2", "2i", 1, "1 + 2i - 1"),
    ("4i+3", "3+4i", 1, "order"),
    # equations
    ("x=5", "5", 1, "named"),
    ("5", "x=5", 1, "named in the gold"),
    ("y=5", "x=5", 0, "another name"),
    ("x=6", "x=5", 0, "another value"),
    ("y-2x=1", "y=2x+1", 1, "rearranged"),
    ("3x+2y=5", "3x+2y-5=0", 1, "rearranged"),
    ("6x+4y=10", "3x+2y=5", 1, "twice on both sides"),
    ("3x+2y=6", "3x+2y=5", 0, "another line"),
    ("b=3, a=2", "a=2, b=3", 1, "order"),
    ("a=3, b=2", "a=2, b=3", 0, "exchanged"),
    (r"\angle ABC = 30^\circ", "30", 1, "an angle with its name"),
    (r"2 \sqrt [3] { 5 }", r"2\sqrt[3]{5}", 1, "blanks"),
    (r"10,\!080", "10080", 1, "another way to set thousands"),
    ("2x+1", "y=2x+1", 1, "the right side"),
    ("7=5", "5", 0, "false, though it ends in 5"),
    ("x=7=5", "5", 0, "false in the middle"),
    ("x=2+3=5", "5", 1, "a true chain"),
    ("x=7, y=5", "5", 0, "two values"),
    ("x+2=7", "7", 0, "the equation of the question, for its right side"),
    ("2x=10", "10", 0, "the same"),
    ("f(2)=10", "10", 1, "a value of a function"),
    ("A=\\pi r^2=9\\pi", "9\\pi", 1, "a name, a formula, its value"),
    # the gold is a solution: the equation of the question, which has it, is no answer
    ("x+2=7", "x=5", 0, "not solved"),
    ("3x-4=2x+1", "x=5", 0, "the unknown on both sides"),
    ("0=x-5", "x=5", 0, "a zero on one side"),
    ("n-4=8", "n=12", 0, "another letter"),
    (r"\angle A+50=90", r"\angle A=40", 0, "an angle"),
    (r"2\angle ABC=80", r"\angle ABC=40", 0, "an angle by three points"),
    ("AB+2=7", "AB=5", 0, "a length"),
    ("f(2)-1=9", "f(2)=10", 0, "a value of a function"),
    ("x+2>7", "x>5", 0, "an inequality"),
    (r"0<x+1\le 3", r"-1<x\le 2", 0, "two of them"),
    (r"x+2\ne 7", r"x\ne 5", 0, "what it is not"),
    ("2x=4, y=3", "x=2, y=3", 0, "one of two"),
    ("x+2=7, x+4=9", "7, 9", 0, "two equations for their right sides"),
    ("x=7=2, x=3", "x=2, x=3", 0, "false in the middle of one"),
    ("5=x", "x=5", 1, "turned round"),
    ("x=2+3=5", "x=5", 1, "a true chain"),
    (r"x=\sqrt{a^2+b^2}=5", "x=5", 1, "a formula on the way"),
    ("5<x", "x>5", 1, "turned round"),
    (r"(5,\infty)", "x>5", 1, "as an interval"),
    ("(-1,2]", r"-1<x\le 2", 1, "half open"),
    (r"\angle A=40^\circ", r"\angle A=40", 1, "degrees"),
    (r"AB=CD=5", "AB=5", 1, "by way of another length"),
    ("x=2y", "x-2y=0", 1, "an equation in the gold"),
    ("x^2-25=0", "x^2=25", 1, "one that is not solved in the gold"),
    (r"y=\frac{6}{x}", "xy=6", 1, "a curve, no length"),
    # lists, sets, tuples, intervals
    ("2, 3", "3, 2", 1, "a list in any order"),
    (r"x=2 \text{ or } x=3", "2, 3", 1, "named"),
    (r"\{2, 3\}", "3, 2", 1, "as a set"),
    (r"\pm 3", "-3, 3", 1, "plus and minus"),
    ("3", r"\pm 3", 0, "one of two"),
    ("2, 3, 4", "2, 3", 0, "one too many"),
    ("5, 5", "5", 0, "a list for one number"),
    ("2, 3, 3", "2, 3", 0, "a longer list"),
    ("5 or 7", "5", 0, "not settled"),
    ("(1, 2)", "(1, 2)", 1, "a point"),
    ("(2, 1)", "(1, 2)", 0, "order"),
    ("1, 2", "(1, 2)", 1, "without brackets"),
    (r"\{1, 2\}", "(1, 2)", 0, "a set is no point"),
    ("(1, 2)", r"\{1, 2\}", 0, "a point is no set"),
    ("[1, 2]", "(1, 2)", 0, "a closed interval"),
    (r"\left[1, \frac{3}{2}\right)", "[1, 1.5)", 1, "half open"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3, \infty) \cup (-\infty, 2)", 1, "order of a union"),
    ("(100,200)", "(100, 200)", 1, "in brackets a comma separates"),
    (r"\emptyset", r"\varnothing", 1, "two signs for it"),
    ("x < 5", "5 > x", 1, "turned round"),
    (r"(-\infty, 5)", "x < 5", 1, "the solutions of the gold"),
    ("x < 5", r"(-\infty, 5)", 0, "not solved: the question may have asked just that"),
    ("x > 5", "x < 5", 0, "the other side"),
    (r"x \le 5", "x < 5", 0, "the bound"),
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\begin{bmatrix}1&2\\3&4\end{bmatrix}",
        1,
        "one matrix in two brackets",
    ),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", 0, "order"),
    # units
    ("5 cm", "5", 1, "a unit where the gold has none"),
    ("5", r"5 \text{ cm}", 1, "none where the gold has one"),
    ("5 centimeters", r"5\text{ cm}", 1, "spelled out"),
    (r"5\,\mathrm{m}", r"5\text{ cm}", 0, "wrong unit"),
    (r"12\pi \text{ cm}^2", r"12\pi", 1, "behind an expression"),
    ("5m", "5", 0, "a variable, as in 5x"),
    ("5 m", r"5 \text{ m}", 1, "the gold says it is a unit"),
    ("4.4", "4.4 m", 1, "a letter behind a number is a unit in a gold"),
    ("4.4 m", "4.4 m", 1, "the same"),
    ("4.4m", "4.4 m", 1, "without the blank"),
    (r"4.4 \text{ m}", "4.4 m", 1, "set as text"),
    ("4.4 metres", "4.4 m", 1, "spelled out"),
    ("4.4 x", "4.4 m", 0, "a variable"),
    ("4.4 cm", "4.4 m", 0, "another unit"),
    ("4.5 m", "4.4 m", 0, "another length"),
    ("685", "685 m", 1, "a whole number with a blank"),
    ("2.6", "2.6m", 1, "decimals without a blank"),
    ("3", "3m", 0, "a whole number without a blank: three times m"),
    ("5", "5 x", 0, "no unit"),
    ("2", "2ab/c", 0, "no unit"),
    (r"\frac{2ab}{c}", "2ab/c", 1, "a quotient"),
    ("14 km/h", "14km / h", 1, "blanks around the bar"),
    (r"14\ \mathrm{km/h}", "14km / h", 1, "a blank of LaTeX"),
    ("14", "$14km / h$", 1, "none where the gold has one"),
    ("36.5", r"36.5 \mathrm{~cm}^{2}", 1, "a tilde before the unit"),
    (r"36.5 \text{ cm}^2", r"36.5 \mathrm{~cm}^{2}", 1, "another way to set it"),
    ("36.5 cm", r"36.5 \mathrm{~cm}^{2}", 0, "a length for an area"),
    (r"125^\circ", "125\u00b0T", 1, "a true bearing is an angle"),
    (r"125^\circ \text{T}", r"125^\circT", 1, "set as text"),
    ("125\u00b0 T", "125", 1, "where the gold has no sign"),
    ("126\u00b0T", "125\u00b0T", 0, "another bearing"),
    ("125T", "125\u00b0T", 0, "a product"),
    # values under their names
    (r"\text{Domain: } [0, 4], \text{ Range: } (1, 2]", "domain: [0, 4] and range: (1, 2]", 1, "set as text"),
    ("range: (1, 2]; domain: [0, 4]", "domain: [0, 4] and range: (1, 2]", 1, "the other way round"),
    ("domain: [0, 5] and range: (1, 2]", "domain: [0, 4] and range: (1, 2]", 0, "another domain"),
    ("domain: [0, 4]", "domain: [0, 4] and range: (1, 2]", 0, "half of it"),
    ("[0, 4], (1, 2]", "domain: [0, 4] and range: (1, 2]", 0, "no names"),
    (
        r"Increasing: $(-\infty, 1) \cup (3, \infty)$, decreasing: $(1, 3)$",
        r"The function is increasing on (-\infty, 1) \cup(3, \infty), and decreasing on (1, 3)",
        1,
        "small words aside",
    ),
    (r"local minimum at (3, 0)", r"\text{ local minimum: }(3, 0) \text{, local maximum: }(-3, 60)", 0, "one of two"),
    # zeros of which SymPy finds no digit
    ("13 - 4 - 9 = 0", "20", 0, "true, and something else"),
    ("13 - 4 - 9 = 0", "0", 1, "true"),
    ("13 - 4 - 9", "0", 1, "worked out"),
    ("12 students", "12 students", 1, "whatever the gold counts"),
    ("5 million", "5", 0, "a word that counts"),
    (r"30^\circ", "30", 1, "degrees"),
    (r"30^{\circ}", r"\frac{\pi}{6}", 0, "are not turned into radians"),
    (r"\$5.50", "5.5", 1, "currency"),
    ("20%", "20", 1, "per cent as points"),
    (r"20\%", "0.2", 1, "and as a value"),
    ("0.2", r"20\%", 1, "the same in the gold"),
    ("2", r"20\%", 0, "neither"),
    # words
    (r"\text{no solution}", "No solution", 1, "words"),
    ("no solution.", r"\text{no solution}", 1, "with a full stop"),
    ("none", r"\text{no solution}", 0, "other words"),
    ("neve", r"\text{even}", 0, "not a product of letters"),
    ("D", "Downhill", 0, "a letter of it"),
    (r"\text{(A)}", "B", 0, "another option"),
    # bases
    ("1011_2", "1011_{2}", 1, "one base in two spellings"),
    ("1011_3", "1011_2", 0, "another base"),
    ("1011", "1011_2", 1, "left out"),
    ("11_2", "11", 0, "not ten"),
    # what is no answer
    (r"\int_0^1 2x dx", "1", 0, "not evaluated"),
    (r"\sum_{k=1}^{4} k", "10", 0, "not evaluated"),
    (r"\lim_{x \to 0} \frac{\sin x}{x}", "1", 0, "not evaluated"),
    (r"\gcd(12, 18)", "6", 0, "not evaluated"),
    (r"\frac{d}{dx} x^2", "2x", 0, "not evaluated"),
    (r"\sum_{k=1}^{n} k", r"\sum_{k=1}^{n} k", 1, "as far as the gold goes"),
    (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n} k", 1, "and further"),
    ("The answer is 5", "5", 0, "a sentence"),
    ("5 = x?", "5", 0, "a question"),
    (r"\boxed{5} \boxed{6}", "6", 0, "two boxes"),
    (r"\frac{5}{0}", "5", 0, "division by zero"),
    (r"\frac{1}{2", r"\frac{1}{2}", 0, "broken off"),
]


@pytest.mark.parametrize(("answer", "gold", "expected", "why"), CASES)
def test_math(answer, gold, expected, why):
    out = REWARDS["math"](respond(say(answer), gold))
    assert out.score == expected, why
    assert bool(out.reason) == (not expected)


@pytest.mark.parametrize("gold", sorted({gold for _, gold, _, _ in CASES}))
def test_every_gold_of_the_table_scores_one_for_itself_in_every_place(gold):
    inside = gold.strip("$")
    for text in (say(gold), f"so \\boxed{{{gold}}}.", f"hm\nAnswer: {gold}", say(f"$\\boxed{{{inside}}}$")):
        assert REWARDS["math"](respond(text, gold)).score == 1, text


def test_it_runs_in_workers_that_import_sympy_before_their_first_response():
    assert "math" not in IN_PROCESS and PRELOAD["math"] == "rewards.answers.symbolic"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("6", "wrong"),
        ("5 kg", "wrong unit"),
        ("12 7", "two numbers side by side"),
        ("9^{9^{9}}", "too large"),
        ("1" * 401, "answer too long"),
        ("1" * 31, "number too long"),
        ("x = = 5", "cannot be parsed"),
        (r"\prod_{k=1}^5 k", "not evaluated"),
        ("five apples", "wrong"),
        ("[5, 5]", "more than one answer"),
        ("'5'", "not mathematics"),
    ],
)
def test_reasons(answer, reason):
    assert REWARDS["math"](respond(say(answer), r"5\text{ cm}")).reason == reason


def test_a_gold_that_cannot_be_compared_says_why():
    for gold, why in (("x + ", "cannot be parsed"), ("5 & 6", "not mathematics"), (r"9^{9^{9}}", "too large")):
        with pytest.raises(Unscorable, match=why):
            REWARDS["math"](respond(say("5"), gold))
