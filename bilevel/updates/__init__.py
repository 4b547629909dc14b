"""Updates: the step rules of the follower, hand-designed and learned.

An :class:`Update` is one step ``(y, gradient, context, state) -> (y', state)``. ∇ is the gradient
of the follower's gain; a tensor y has a row for each sample, a dict is shared by the batch; N is a
network.

==========================  ==========================================  ==========================
update                      y'                                          y
==========================  ==========================================  ==========================
:class:`Gradient`           y + step · ∇                                tensor or dict
:class:`SignGradient`       y + step · sign ∇                           tensor or dict
:class:`NormalizedGradient` y + step · ∇ / ‖∇‖₂                         tensor or dict
:class:`Momentum`           another update, with m ← decay · m + ∇      as that update
:class:`Optimizer`          as an optimizer of ``torch.optim``          tensor or dict
:class:`CNN`                y + scale · tanh(N(context, ∇))             images (B, C, H, W)
:class:`ConvRNN`            y + scale · tanh(N(context, ∇, h))          images (B, C, H, W)
:class:`CoordinateRNN`      y + scale · N(∇ᵢ, hᵢ) for each i            tensor or dict
:class:`CoordinateMLP`      y + scale · N(yᵢ, ∇ᵢ) for each i            tensor or dict
:class:`MLP`                y + N(y, ∇)                                 tensor or dict, m elements
==========================  ==========================================  ==========================

The last five are learned; h is a hidden state. With ``gradient_skip`` their initial step is a
hand-designed one: ``y + scale · tanh(s · sign ∇)`` for the image updates, ``y + η · ∇`` for the
others. For your own network, subclass :class:`ImageUpdate`, :class:`VectorUpdate` or
:class:`Update`.

:class:`LearnedOptimizer` makes an update an optimizer of ``torch.optim`` again: a trained one then
trains any network.
"""

from bilevel.updates.base import State, Update
from bilevel.updates.cnn import CNN
from bilevel.updates.gradient import Gradient, Momentum, NormalizedGradient, SignGradient
from bilevel.updates.learned import ImageUpdate, VectorUpdate
from bilevel.updates.learned_optimizer import LearnedOptimizer
from bilevel.updates.mlp import MLP, CoordinateMLP
from bilevel.updates.normalize import max_abs, unit_norm
from bilevel.updates.optimizer import Optimizer
from bilevel.updates.rnn import ConvRNN, CoordinateRNN

__all__ = [
    "CNN",
    "MLP",
    "ConvRNN",
    "CoordinateMLP",
    "CoordinateRNN",
    "Gradient",
    "ImageUpdate",
    "LearnedOptimizer",
    "Momentum",
    "NormalizedGradient",
    "Optimizer",
    "SignGradient",
    "State",
    "Update",
    "VectorUpdate",
    "max_abs",
    "unit_norm",
]
