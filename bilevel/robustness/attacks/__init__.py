"""Solvers and interfaces that attack a trained classifier."""

from bilevel.robustness.attacks.apgd import APGD
from bilevel.robustness.attacks.carlini_wagner import CarliniWagner
from bilevel.robustness.attacks.random_sampling import RandomSampling
from bilevel.robustness.attacks.square import Square

__all__ = ["APGD", "CarliniWagner", "RandomSampling", "Square"]
