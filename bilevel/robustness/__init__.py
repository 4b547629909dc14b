"""The image kit: threat models, classifiers, data, training methods and their evaluation.

Linf, L2                 what an adversary may do: followers of a classifier
build_model              classifiers that take images in [0, 1]
load_images              images as bytes on the training device
make_solver, Attacker    the paper's training methods by name
Recipe, make_game        how they are trained
Trainer                  epochs, validation, checkpoints
accuracy, attack         what a classifier gets right
"""

from bilevel.robustness.batches import Augment as Augment
from bilevel.robustness.batches import Batch as Batch
from bilevel.robustness.batches import batches as batches
from bilevel.robustness.batches import shuffled_batches as shuffled_batches
from bilevel.robustness.data import Dataset as Dataset
from bilevel.robustness.data import ImageSet as ImageSet
from bilevel.robustness.data import Splits as Splits
from bilevel.robustness.data import load_images as load_images
from bilevel.robustness.data import sample as sample
from bilevel.robustness.evaluation import accuracy as accuracy
from bilevel.robustness.evaluation import attack as attack
from bilevel.robustness.figures import draw_attacks as draw_attacks
from bilevel.robustness.methods import (
    EVALUATION_STEP as EVALUATION_STEP,
)
from bilevel.robustness.methods import (
    METHODS as METHODS,
)
from bilevel.robustness.methods import (
    TRAINING_STEP as TRAINING_STEP,
)
from bilevel.robustness.methods import (
    Attacker as Attacker,
)
from bilevel.robustness.methods import (
    check_method as check_method,
)
from bilevel.robustness.methods import (
    is_learned as is_learned,
)
from bilevel.robustness.methods import (
    make_solver as make_solver,
)
from bilevel.robustness.models import build_model as build_model
from bilevel.robustness.models import resnet18 as resnet18
from bilevel.robustness.models import small_cnn as small_cnn
from bilevel.robustness.models import wide_resnet as wide_resnet
from bilevel.robustness.recipe import RECIPES as RECIPES
from bilevel.robustness.recipe import Recipe as Recipe
from bilevel.robustness.recipe import make_game as make_game
from bilevel.robustness.threats import L2 as L2
from bilevel.robustness.threats import Linf as Linf
from bilevel.robustness.threats import Perturbation as Perturbation
from bilevel.robustness.training import Progress as Progress
from bilevel.robustness.training import Trainer as Trainer
from bilevel.robustness.weights import load_weights as load_weights
from bilevel.robustness.weights import read_about as read_about
from bilevel.robustness.weights import save_weights as save_weights
