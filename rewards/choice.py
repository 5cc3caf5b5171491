"""Is the answer the right option?"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from rewards.answers.extract import bare, plain, undressed, unset, written_answer
from rewards.answers.typeset import typeset
from rewards.base import EMPTY, NO_ANSWER, WRONG, RewardInput, RewardOutput, Unscorable
from rewards.number import parse_number

MAX_OPTIONS = 100
_MAX_LISTED = 600  # characters of a list of labels
_LABEL = re.compile(r"[A-Za-z0-9]{1,3}")
# "B", "(B)", "B." / "B)" / "B:" alone or followed by the text of the option. Behind a letter the mark may be a Chinese
# one, and no blank is needed: "B.red", "B:red" (MathVerse), "B\u3001red". Behind digits it is: 1.5 is a number.
_NAMED = re.compile(
    r"\(([A-Za-z0-9]{1,3})\)(?:[.:\u3001\u3002]? ?(.+))?|([A-Za-z0-9]{1,3})(?:[.):](?: (.+))?)?"
    r"|([A-Za-z]{1,3})[.):\u3001\u3002](.+)"
)
# "B (red)", "B - red", "B red": a letter with the text of its option, which must be no label.
_BESIDE = re.compile(r"([A-Za-z]{1,3}) ?\((.+)\)|([A-Za-z]{1,3}) (?:[-\u2013\u2014=] )?(.+)")
_BETWEEN_LABELS = re.compile(r"[,;/&]| and |\s")
# \text{B}, \text{B. red} and \textbf{(B) }red, as LaTeX sets a label.
_SET_LABEL = re.compile(r"\\(?:text|textbf|mathrm|mathbf) ?\{(?!~)([^{}\\]*)\}")
# "**B.** red" and "**(B)** red", as Markdown sets it.
_MARKED_LABEL = re.compile(r"\A(\*{1,3}|_{1,3})(\([A-Za-z0-9]{1,3}\)|[A-Za-z0-9]{1,3}[.):]?)\1(?= |[.:])")
# "Option B", "Option (B): red" and "[B] red" are B, (B): red and (B) red.
_OPTION = re.compile(r"\A[Oo]ption (?=\(?[A-Za-z0-9]{1,3}(?:[):.]|\Z| ))")
_IN_SQUARES = re.compile(r"\A\[([A-Za-z0-9]{1,3})\]")
# A label in math marks of its own: `$B$ red`, `\( B \): red`.
_MATH_LABEL = re.compile(r"\A(?:\$ ?([A-Za-z0-9]{1,3}) ?\$|\\\( ?([A-Za-z0-9]{1,3}) ?\\\))[.):]?(?= )")


def choice(x: RewardInput) -> RewardOutput:
    r"""1 if the answer names the gold option, by its label or by its text, else 0.

    The whole answer must name it: "B", "(B)", "B. red", "B.red", "(B)red", "B (red)", "B - red", "B red", "[B]",
    "Option B", `$\text{B}$ red` and "red" do (if option B reads "red"); "B or C", "B. blue" and a sentence with a B in
    it do not.
    Case does not matter, nor Markdown around all and a full stop, nor how a text is set: `$45^\circ$` is the option 45°
    (rewards.answers.typeset). Of options that differ in such things only, the one that is written like the answer is
    meant; if none is, the answer names none. The options are

    * meta["options"], a mapping {"A": text, ...}: labels of one to three letters or digits. An answer that is
      literally a label means that label, also where another option reads like it. A text may be "" (a picture).
    * or meta["choices"], the texts of options A, B, ...: here an answer that is literally the text of an
      option means that option, also where it looks like a letter.
    * or neither: gold and answer are single letters.

    An answer that is no option's text but a number ("5.0", "1/2") means the option whose text is that number
    ("5", "0.5"), if exactly one is.

    meta["same"], a mapping {"D": "C"}, says that option D is as good as C: options that read the same, of which each is
    right. One of them has a text, the others "". Not together with `several`.

    With meta["several"] = true a question may have several right options: gold and answer are sets of labels, such
    as "A, C", "(A) and (C)" or "AC", and must be the same set. One option is named as above.

    Raises:
        Unscorable: the gold names no option, two options read the same, or the options are malformed.
    """
    options = _Options(x.meta.get("options"), x.meta.get("choices"), x.meta.get("same"))
    several = x.meta.get("several", False)
    if not isinstance(several, bool):
        raise Unscorable(f"meta['several'] must be true or false, got {several!r}")
    if several and x.meta.get("same"):
        raise Unscorable("meta['same'] and meta['several'] are both given; give one")
    read = options.set_named if several else options.named
    gold = read(x.answer)
    if gold is None:
        raise Unscorable(f"reference answer {x.answer[:40]!r} names none of the options {options}")
    answer = written_answer(x.text)
    if not answer:
        return RewardOutput(0.0, reason=NO_ANSWER if answer is None else EMPTY)
    named = read(answer)
    if named is None:
        return RewardOutput(0.0, reason="not an option")
    return RewardOutput(1.0) if named == gold else RewardOutput(0.0, reason=WRONG)


class _Options:
    """Labels and texts of the options, case-folded."""

    def __init__(self, labelled: Any, listed: Any, same: Any):
        if labelled is not None and listed is not None:
            raise Unscorable("meta['options'] and meta['choices'] are both given; give one")
        texts = _labelled(labelled) if labelled is not None else _listed(listed)
        self._labels_first = labelled is not None
        self._texts = {label.casefold(): folded(text) for label, text in texts.items()}
        shown = [text for text in self._texts.values() if text]
        if len(self._texts) < len(texts) or len(set(shown)) < len(shown):
            raise Unscorable(f"the options must have different labels and texts, got {str(dict(texts))[:200]}")
        self._by_text = {text: label for label, text in self._texts.items() if text}
        # An answer is at most so long: a label, the text of an option, and what sets it.
        self._longest = _MAX_LISTED + 4 * max(map(len, texts.values()), default=0)
        self._shown = {label.casefold(): text for label, text in texts.items() if folded(text)}
        self._same = _same(same, self._texts)

    def __str__(self) -> str:
        return str(self._texts)[:200] if self._texts else "A-Z"

    def named(self, text: str) -> str | None:
        """Label of the option that `text` names, or None; of options that are as good as each other, one label."""
        label = self._named(text)
        return label if label is None else self._same.get(label, label)

    def _named(self, text: str) -> str | None:
        text = plain(text)
        if len(text) > self._longest:
            return None
        for form, of_options in _READINGS:
            answer = form(text)
            exact = [self._texts.keys() & {answer}, self._reading(answer, of_options)]
            for found in exact if self._labels_first else reversed(exact):
                if len(found) == 1:
                    return min(found)
        return self._by_label(text) or self._by_value(undressed(text))

    def _reading(self, answer: str, form: Callable[[str], str]) -> set[str]:
        """Labels of the options whose texts are `answer` in this form."""
        if form is folded:
            return {self._by_text[answer]} if answer in self._by_text else set()
        return {label for label, text in self._shown.items() if answer and form(text) == answer}

    def set_named(self, text: str) -> frozenset[str] | None:
        """Labels of the options that `text` lists, or None if anything in it is none."""
        one = self.named(text)
        if one is not None:
            return frozenset([one])
        answer = _loosely(text) if len(plain(text)) <= _MAX_LISTED else ""
        parts = [part for part in _BETWEEN_LABELS.split(answer) if part]
        if len(parts) == 1 and parts[0].isalpha():
            parts = list(parts[0])
        labels = [self._by_label(part) for part in parts]
        return frozenset(label for label in labels if label is not None) if labels and None not in labels else None

    def _by_label(self, text: str) -> str | None:
        apart = _IN_SQUARES.sub(r"(\1)", _OPTION.sub("", _label_apart(text)))
        match = _NAMED.fullmatch(apart)
        if match is not None:
            label, said = (match[1] or match[3] or match[5]).casefold(), match[2] or match[4] or match[6]
        else:
            match = _BESIDE.fullmatch(apart)
            if match is None:
                return None
            label, said = (match[1] or match[3]).casefold(), match[2] or match[4]
            if said.casefold() in self._texts:
                return None
        if not self._texts:  # letters are all that is known
            return label if said is None and len(label) == 1 and label.isalpha() else None
        if label not in self._texts or said is None:
            return label if label in self._texts else None
        shown = self._shown.get(self._same.get(label, label), "")
        texts = (said, said.removeprefix("~"))  # a tie may be a blank of LaTeX, or stand for "about"
        agree = any(form(each) == of_options(shown) for each in texts for form, of_options in _READINGS)
        return label if agree else None

    def _by_value(self, answer: str) -> str | None:
        value = parse_number(answer)
        if value is None:
            return None
        found = [label for text, label in self._by_text.items() if parse_number(text) == value]
        return found[0] if len(found) == 1 else None


def folded(text: str) -> str:
    """A label or text as it is written, but for LaTeX around it and case: two options must not be the same so."""
    text = unset(plain(text))
    return unset(plain(_SET_LABEL.sub(r"\1", text))).casefold()


def _loosely(text: str) -> str:
    """`folded`, without Markdown and a full stop around all of it and Markdown around a label."""
    return _label_apart(text).casefold()


def _label_apart(text: str) -> str:
    text = _MARKED_LABEL.sub(r"\2", bare(_SET_LABEL.sub(r"\1", bare(text))))
    return _MATH_LABEL.sub(r"(\1\2)", text)


def _set(text: str) -> str:
    return typeset(text).casefold()


# Of an answer and of the options, one after another: as it is written, what it says, how it reads once it is set.
_READINGS = ((folded, folded), (_loosely, folded), (_loosely, _loosely), (_set, _set))


def _labelled(options: Any) -> Mapping[str, str]:
    if not isinstance(options, Mapping) or not 0 < len(options) <= MAX_OPTIONS:
        raise Unscorable(f"meta['options'] must map labels to texts, up to {MAX_OPTIONS}, got {str(options)[:60]!r}")
    for label, text in options.items():
        if not isinstance(label, str) or not _LABEL.fullmatch(label) or not isinstance(text, str):
            raise Unscorable(f"meta['options'] must map labels like 'A' to texts, got {label!r}: {text!r}")
    return options


def _same(same: Any, texts: Mapping[str, str]) -> Mapping[str, str]:
    """Label -> the label that stands for it, case-folded."""
    if same is None:
        return {}
    if not isinstance(same, Mapping) or not all(isinstance(label, str) for pair in same.items() for label in pair):
        raise Unscorable(f"meta['same'] must map labels to labels, got {str(same)[:60]!r}")
    found = {label.casefold(): other.casefold() for label, other in same.items()}
    if not {*found, *found.values()} <= texts.keys() or found.keys() & set(found.values()):
        raise Unscorable(f"meta['same'] must map labels of options to others of them, got {str(same)[:60]!r}")
    return found


def _listed(choices: Any) -> Mapping[str, str]:
    if choices is None:
        return {}
    texts = isinstance(choices, list | tuple) and all(isinstance(c, str) for c in choices)
    if not texts or len(choices) > 26:
        raise Unscorable(f"meta['choices'] must be a list of at most 26 texts, got {str(choices)[:60]!r}")
    if not choices or not all(map(folded, choices)):
        raise Unscorable(f"meta['choices'] must hold different, non-empty texts, got {str(choices)[:200]}")
    return {chr(ord("A") + i): text for i, text in enumerate(choices)}
