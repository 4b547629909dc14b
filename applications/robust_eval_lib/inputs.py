"""Loading and checking of classifiers and their images."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from bilevel import BilevelError
from bilevel.fingerprint import fingerprint
from bilevel.robustness import (
    About,
    ImageSet,
    Splits,
    Trained,
    build_own,
    is_own,
    load_trained,
)
from bilevel.robustness.data.sources import load_together
from bilevel.robustness.trained import CLASSIFIER


class Source(NamedTuple):
    """The images that are attacked, see ``load_images``; None for what the training had."""

    dataset: str | None
    data_dir: Path
    image_size: int | None = None


def load(
    names: tuple[str, ...],
    device: torch.device,
    source: Source,
    *,
    allow_import: bool,
) -> list[Trained]:
    """Loads classifiers onto a device; the default name is that of the folder or function."""
    trained = []
    for given in names:
        name, path = split_name(given)
        if Path(path).exists() or not is_own(path):
            check_folder(path)
            one = load_trained(path, name, allow_import=allow_import)
        elif source.dataset is None:
            raise BilevelError(
                f"{path} is a classifier of your own and there is no dataset: name the images "
                "that it is attacked on with --dataset and --data-dir"
            )
        else:
            one = make_own(path, name, source.dataset, read(source, 0, device).test)
        for network in (one.model, one.solver):
            if network is not None:
                network.to(device)
                if not is_own(one.about.model):  # which may read the layout, as view() does
                    network.to(memory_format=torch.channels_last)
        trained.append(one)
    found = [one.name for one in trained]
    if len(set(found)) < len(found):
        raise BilevelError(
            f"two classifiers have the same name ({', '.join(found)}): give "
            "NAME=FOLDER to tell them apart in the report"
        )
    return trained


def check_folder(path: str) -> None:
    """Checks that a folder is not that of several classifiers, a folder each."""
    within = sorted(file.parent.name for file in Path(path).glob(f"*/{CLASSIFIER}"))
    if within and not (Path(path) / CLASSIFIER).exists():
        raise BilevelError(
            f"{path} holds {', '.join(within)}, a classifier each: name one, such as "
            f"{Path(path) / within[0]}"
        )


def make_own(path: str, name: str | None, dataset: str, images: ImageSet) -> Trained:
    """The classifier that MODULE:FUNCTION returns, of which no more is known than its images."""
    channels, classes = images.images.shape[1], images.classes
    about = About("plain", path, channels, len(classes), dataset, epsilon=0.0, class_names=classes)
    return Trained(name or path.partition(":")[2], about, build_own(path))


def split_name(given: str) -> tuple[str | None, str]:
    """Splits NAME=FOLDER; the name of a folder may itself contain a "="."""
    name, _, path = given.partition("=")
    if not path or os.sep in name or Path(given).exists():
        return None, given
    if name in ("", ".", ".."):
        raise BilevelError(
            f"{given} names a classifier {name!r}: its results are kept in a folder of its name in "
            f"--out; give it another, such as mine={path}, or leave it out"
        )
    return name, path


def check_surrogates(target: Trained, surrogates: list[Trained]) -> None:
    """Checks that surrogates are others with the target's channels, size, and order of classes."""
    for surrogate in surrogates:
        for what in ("classes", "channels", "size"):
            own, other = getattr(target.about, what), getattr(surrogate.about, what)
            if own != other and own and other:  # an unknown size is ()
                raise BilevelError(
                    f"surrogate {surrogate.name} has {other} {what}, {target.name} has {own}: its "
                    "adversarial images do not fit; name a surrogate trained on the same data"
                )
        if differ := differing(target.about.class_names, surrogate.about.class_names):
            raise BilevelError(
                f"surrogate {surrogate.name} has other classes: {differ[0]!r} of {target.name} is "
                f"{differ[1]!r} there; name a surrogate trained on the same data"
            )
        if same_classifier(surrogate, target):
            raise BilevelError(
                f"surrogate {surrogate.name} is {target.name} itself: attacks through it take the "
                "gradients of the target and would count as black-box; name one that was trained "
                "apart, with another seed for instance"
            )


def same_classifier(one: Trained, other: Trained) -> bool:
    """Whether two classifiers are the same, wherever their files are."""
    # Functions without weights have the same fingerprint; and the same weights in another network,
    # which leaves out a layer for instance, are a surrogate as others are.
    networks = {fingerprint(each.model) for each in (one, other)}
    return one.about.model == other.about.model and len(networks) == 1


def images_of(target: Trained, source: Source, device: torch.device) -> Splits:
    """Loads the images, and checks that they fit the classifier."""
    dataset, data_dir = source.dataset or target.about.dataset, source.data_dir
    if dataset in ("folder", "npz") and not data_dir.expanduser().exists():
        raise BilevelError(
            f"{target.name} is attacked on images of your own, and there is no {data_dir}: name "
            f"the {'file' if dataset == 'npz' else 'folder'} with --data-dir, as for its training"
        )
    side = source.image_size or (target.about.image_size if dataset == "folder" else None)
    data = read(Source(dataset, data_dir, side), target.about.seed, device)
    shape = (data.test.images.shape[1], len(data.test.classes))
    if shape != (target.about.channels, target.about.classes):
        raise BilevelError(
            f"{target.name} takes {target.about.channels} channels to {target.about.classes} "
            f"classes, {dataset} has {shape[0]} and {shape[1]}: name the data that it was trained "
            "on with --dataset and --data-dir"
        )
    if target.about.size and (size := tuple(data.test.images.shape[2:])) != target.about.size:
        raise BilevelError(
            f"{target.name} was trained on images of {target.about.size} pixels (height, width), "
            f"{dataset} has {size}: its robustness differs there; leave out --image-size, bring "
            "them to its size, or name the data of its training with --dataset and --data-dir"
        )
    if differ := differing(target.about.class_names, data.test.classes):
        raise BilevelError(
            f"{target.name} was trained with other classes: {differ[0]!r} of its training is "
            f"{differ[1]!r} in {dataset}; give the classes the same names, in the same order, or "
            "name the data that it was trained on with --dataset and --data-dir"
        )
    return data


def differing(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, str] | None:
    """The first class that has two names; None if there is none, or the names are not known."""
    pairs = zip(one, other, strict=True) if one and other else ()
    return next(((a, b) for a, b in pairs if a != b), None)


@lru_cache(maxsize=1)
def read(source: Source, seed: int, device: torch.device) -> Splits:
    """Loads a dataset, once for all classifiers that were trained on it."""
    data = load_together(*source[:2], seed=seed, image_size=source.image_size)
    return Splits(*(part.to(device) for part in data))
