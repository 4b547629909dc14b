"""The image kit: threat models, classifiers, data, training methods and their evaluation.

    Linf, L2, L1             threat models, as followers of a classifier
    build_model              classifiers of images in [0, 1]
    load_images              image sets as bytes in memory
    make_solver, Attacker    the paper's training methods by name
    Recipe, make_game        hyperparameters, and the game that they define
    Trainer                  epochs, validation, checkpoints
    SolverAttack, Battery    attacks, and the worst case over all of them
    probe, judge             whether the worst case can be trusted

``applications/adv_training.py`` and ``applications/robust_eval.py`` put them together.
"""

from bilevel.experiment.weights import load_weights, read_about, save_weights
from bilevel.robustness.attacks.apgd import APGD
from bilevel.robustness.attacks.attack import Attack, attack
from bilevel.robustness.attacks.carlini_wagner import CarliniWagner
from bilevel.robustness.attacks.external import ExternalAttack
from bilevel.robustness.attacks.fresh import FreshAttack
from bilevel.robustness.attacks.interfaces import Adversary, foolbox_attack
from bilevel.robustness.attacks.named import check_attack
from bilevel.robustness.attacks.random_sampling import RandomSampling
from bilevel.robustness.attacks.settings import AttackSettings
from bilevel.robustness.attacks.solver_attack import SolverAttack
from bilevel.robustness.attacks.square import Square
from bilevel.robustness.attacks.standard import STANDARD, make_attacks, standard_attacks
from bilevel.robustness.data.augment import Augment
from bilevel.robustness.data.batches import Batch, TrackedBatch, batches, shuffled_batches
from bilevel.robustness.data.decoding import read_image
from bilevel.robustness.data.images import ImageSet
from bilevel.robustness.data.sources import Dataset, load_images
from bilevel.robustness.data.splits import Splits, sample
from bilevel.robustness.evaluation.accuracy import accuracy, correct
from bilevel.robustness.evaluation.battery import Battery
from bilevel.robustness.evaluation.curves import accuracy_by_epsilon, accuracy_by_iterations
from bilevel.robustness.evaluation.examples import Example, examples, plot_attacks
from bilevel.robustness.evaluation.probes import check_classifier, probe
from bilevel.robustness.evaluation.records import records
from bilevel.robustness.evaluation.report import write_report
from bilevel.robustness.evaluation.results import Curve, Evaluation, Finding, Outcome
from bilevel.robustness.evaluation.verdict import headline, judge, not_to_be_quoted
from bilevel.robustness.methods import (
    EVALUATION_START,
    EVALUATION_STEP,
    METHODS,
    TRAINING_STEP,
    Attacker,
    check_method,
    fitting_width,
    is_learned,
    make_solver,
)
from bilevel.robustness.networks.averaging import EMA
from bilevel.robustness.networks.classifier import Classifier, Normalize
from bilevel.robustness.networks.compilation import compile_network
from bilevel.robustness.networks.failures import explain_out_of_memory
from bilevel.robustness.networks.models import build_model, resnet18, small_cnn, wide_resnet
from bilevel.robustness.networks.own import build_classifier, build_own, is_own
from bilevel.robustness.networks.precision import computing, default_precision
from bilevel.robustness.networks.trunk import Trunk, recompute_activations
from bilevel.robustness.recipe import RECIPES, Recipe, fast, make_game
from bilevel.robustness.threats.interpolation import InterpolatedLabels, Interpolation
from bilevel.robustness.threats.l1 import L1
from bilevel.robustness.threats.losses import (
    Targeted,
    cross_entropy,
    dlr,
    margin,
    targeted_cross_entropy,
    targeted_dlr,
    targeted_margin,
)
from bilevel.robustness.threats.memory import Memory
from bilevel.robustness.threats.norms import NORMS, Norm
from bilevel.robustness.threats.perturbation import L2, Linf, Perturbation
from bilevel.robustness.threats.threat import Threat
from bilevel.robustness.trained import About, Trained, load_trained, save_trained
from bilevel.robustness.training.progress import Progress
from bilevel.robustness.training.trainer import Trainer

__all__ = [
    "APGD",
    "EMA",
    "EVALUATION_START",
    "EVALUATION_STEP",
    "L1",
    "L2",
    "METHODS",
    "NORMS",
    "RECIPES",
    "STANDARD",
    "TRAINING_STEP",
    "About",
    "Adversary",
    "Attack",
    "AttackSettings",
    "Attacker",
    "Augment",
    "Batch",
    "Battery",
    "CarliniWagner",
    "Classifier",
    "Curve",
    "Dataset",
    "Evaluation",
    "Example",
    "ExternalAttack",
    "Finding",
    "FreshAttack",
    "ImageSet",
    "InterpolatedLabels",
    "Interpolation",
    "Linf",
    "Memory",
    "Norm",
    "Normalize",
    "Outcome",
    "Perturbation",
    "Progress",
    "RandomSampling",
    "Recipe",
    "SolverAttack",
    "Splits",
    "Square",
    "Targeted",
    "Threat",
    "TrackedBatch",
    "Trained",
    "Trainer",
    "Trunk",
    "accuracy",
    "accuracy_by_epsilon",
    "accuracy_by_iterations",
    "attack",
    "batches",
    "build_classifier",
    "build_model",
    "build_own",
    "check_attack",
    "check_classifier",
    "check_method",
    "compile_network",
    "computing",
    "correct",
    "cross_entropy",
    "default_precision",
    "dlr",
    "examples",
    "explain_out_of_memory",
    "fast",
    "fitting_width",
    "foolbox_attack",
    "headline",
    "is_learned",
    "is_own",
    "judge",
    "load_images",
    "load_trained",
    "load_weights",
    "make_attacks",
    "make_game",
    "make_solver",
    "margin",
    "not_to_be_quoted",
    "plot_attacks",
    "probe",
    "read_about",
    "read_image",
    "recompute_activations",
    "records",
    "resnet18",
    "sample",
    "save_trained",
    "save_weights",
    "shuffled_batches",
    "small_cnn",
    "standard_attacks",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
    "wide_resnet",
    "write_report",
]
