r"""
Defend by learning to attack
============================

A classifier of digits is trained against an adversary that may change each pixel by
:math:`\varepsilon`, first one that takes ten gradient steps, then one whose step is a network that
learns to attack while the classifier learns to defend (Jiang et al., 2021). The image kit brings
the parts: threat models, data, networks, training and an evaluation that says whether its figures
can be trusted.

.. math::

    \min_\theta \; \frac1n \sum_i \; \max_{\|\delta_i\|_\infty \le \varepsilon}
    \; \ell\bigl(f_\theta(x_i + \delta_i), y_i\bigr)
"""

# %%
# Images and threat model
# -----------------------
#
# :func:`~bilevel.robustness.load_images` reads scikit-learn's digits, CIFAR, a folder of your own
# or an ``.npz`` file, as bytes. A :class:`~bilevel.robustness.Recipe` holds the hyperparameters.
# There is one for each dataset; :func:`~bilevel.robustness.fast` makes it shorter.

import tempfile
import textwrap
from dataclasses import replace
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import torch

import bilevel
from bilevel import robustness, updates

torch.manual_seed(0)
torch.set_num_threads(1)
eps = 0.2
images = robustness.load_images("digits", ".", seed=0)
recipe = replace(robustness.fast(robustness.RECIPES["digits"]), epochs=10)
follower = robustness.Linf(eps)

# %%
# Three adversaries
# -----------------
#
# Each is a solver of the same follower. The learned one has a step rule with weights: it reads the
# image and the gradient of the loss, and starts near a sign-gradient step (``gradient_skip``).

attacker = updates.CNN(channels=1, scale=eps, form="two-layer", width=32, gradient_skip=2.0)
solvers = {
    "none": bilevel.pgm(eps, 0),
    "ten gradient steps": bilevel.pgm(0.007 / 0.031 * eps, 10),
    "two learned steps": bilevel.Iterative(attacker, steps=2),
}

# %%
# Train
# -----
#
# :func:`~bilevel.robustness.make_game` adds the recipe's optimizers, SGD for the classifier and
# Adam for the attacker, which one backward pass trains together. The
# :class:`~bilevel.robustness.Trainer` shuffles, validates, and keeps the best epoch: by accuracy
# under attack, or without an adversary by clean accuracy. It writes checkpoints; after an
# interruption, ``trainer.resume()`` before ``trainer.fit()`` goes on.

models = {}
for name, solver in solvers.items():
    monitor = "validation_clean" if name == "none" else "validation_robust"
    torch.manual_seed(0)
    model = robustness.build_model(recipe.model, channels=1, classes=10)
    game = robustness.make_game(bilevel.ZeroSum(model, follower), follower, solver, recipe)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        trainer = robustness.Trainer(game, images, recipe, seed=0, path=path, monitor=monitor)
        progress = trainer.fit()
    models[name] = model
    best = progress.history[progress.best_epoch]
    print(
        f"{name:20} {median(progress.seconds):.2f} s an epoch; validation: "
        f"clean {best['validation_clean']:.1%}, attacked {best['validation_robust']:.1%}"
    )

# %%
# What the attacks look like
# --------------------------
#
# The attack that each classifier was trained with (PGM-20 where that is none) on the same five
# digits: the image that the classifier sees, with its answer, wrong ones in red, and the change.

pgm20 = bilevel.pgm(0.003 / 0.031 * eps, 20)
batch = next(robustness.batches(images.test, 5))
figure, axes = plt.subplots(3, 10, figsize=(10, 3.6), layout="constrained")
for row, (name, model) in zip(axes, models.items(), strict=True):
    solver = pgm20 if name == "none" else solvers[name]
    attacked = robustness.attack(model, follower, solver, batch).x
    answers = model.eval()(attacked).argmax(1)
    row[0].set_ylabel(name.replace(" ", "\n"))
    for image, change, x, clean, answer, label in zip(
        row[::2], row[1::2], attacked, batch.x, answers, batch.y, strict=True
    ):
        image.imshow(x[0], cmap="gray", vmin=0, vmax=1)
        image.set_title(f"{answer}", color="black" if answer == label else "crimson")
        change.imshow((x - clean)[0], cmap="RdBu_r", vmin=-eps, vmax=eps)
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
plt.show()

# %%
# How far they hold
# -----------------
#
# Accuracy under ten gradient steps as the adversary is allowed more. It has to reach zero: where
# all images are within reach, an attack that fails is too weak.

shown = robustness.sample(images.test, 200)
curves = {k: robustness.accuracy_by_epsilon(m, shown, eps) for k, m in models.items()}
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for name, curve in curves.items():
    axes.plot(curve.at, curve.accuracy, marker=".", label=name)
axes.axvline(eps, color="gray", linestyle=":")
axes.set(xlabel="ε of the attack (dotted: of the training)", ylabel="accuracy", ylim=(0, 1))
axes.legend(title="trained against")
plt.show()

# %%
# What can be claimed
# -------------------
#
# The attack of training is no evaluation. A battery of attacks, each on what the others have left,
# gives the worst case; checks of the classifier and of the attacks' results tell whether to believe
# it.

name, model = "two learned steps", models["two learned steps"]
battery = robustness.Battery(robustness.standard_attacks(eps, classes=10), eps=eps)
right, outcomes = battery.run(model, shown)
both = curves[name], robustness.accuracy_by_iterations(model, shown, eps)
evaluation = robustness.Evaluation(name, eps, recipe.epsilon, right, outcomes, both)
findings = robustness.judge(evaluation, robustness.probe(model, shown))
for outcome in outcomes:
    left = evaluation.so_far(outcome)
    print(f"{outcome.name:20} {left:6.1%} left")
for finding in findings:
    print("✓" if finding.ok else "✗", f"{finding.item:45} {finding.figure}")
print(textwrap.fill(robustness.headline(replace(evaluation, findings=findings)), 80))

# %%
# From here
# ---------
#
# ``Recipe(warm_start=True)`` starts each image's attack where the last one on it has ended, with
# which few steps can be as good as many. ``applications/adv_training.py`` trains on your images
# with checkpoints, tables and several processes: :doc:`/adversarial_training`.
# ``applications/robust_eval.py`` evaluates any classifier, with a page of results:
# :doc:`/robustness_evaluation`. What a learned attacker saves on large networks is in
# :doc:`/speed`.
