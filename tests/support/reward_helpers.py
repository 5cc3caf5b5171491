"""Responses and gold answers for the tests of the rewards."""

import contextlib
from typing import Any

import psutil

from rewards import REWARDS, RewardInput


def respond(text: str, answer: str = "", tokens: tuple[int, ...] = (), limit: int = 100, **meta: Any) -> RewardInput:
    return RewardInput(
        text=text,
        num_tokens=len(tokens),
        max_tokens=limit,
        finish="stop",
        token_ids=tokens,
        answer=answer,
        meta=meta,
    )


def worker_processes() -> list[psutil.Process]:
    """Live processes that this one has spawned to do work (not the resource tracker of multiprocessing)."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # gone, or a zombie, since the list was made
            if "--multiprocessing-fork" in child.cmdline():
                found.append(child)
    return found


def say(answer: str) -> str:
    return f"<think> two of\nthem </think> <answer> {answer} </answer>"


def score(name: str, text: str, answer: str, **meta: Any) -> float:
    return REWARDS[name](respond(text, answer, **meta)).score


COLOURS = ["red", "blue", "dark green"]
GOLDS = [  # reward, gold, meta
    ("number", "42", {}),
    ("number", "-1.5", {"tolerance": 0.1}),
    ("choice", "B", {"choices": COLOURS}),
    ("choice", "dark green", {"choices": COLOURS}),
    ("choice", "D", {}),
    ("choice", "C", {"options": {"A": "red", "B": "blue", "C": ""}}),
    ("word", "Blue", {}),
    ("box", "1 2 5 6", {}),
    ("box", "[3, 3, 3, 3]", {"inclusive": True}),
    ("list", "red, dark green, 7", {}),
    ("list", '["b", "a, c"]', {"ordered": True}),
    ("maze", "R R D D", {"grid": ["S..", "##.", "..G"]}),
    ("ocr", "Total 12.50", {}),
    ("number", "5 cm", {"unit": ["cm", "centimeters"]}),
    ("number", "20", {"percent": "points", "precision": 1}),
    ("chart", "12.5", {}),
    ("chart", "Brazil", {}),
    ("count", "12", {}),
    ("math", "\\frac{1}{2}", {}),
    ("math", "x^2 + 1", {}),
]
