"""A classifier of one's own, named by the function that makes it, with its weights."""

from __future__ import annotations

from bilevel.robustness import About, ImageSet, Trained, build_own


def make_own(path: str, name: str | None, dataset: str, images: ImageSet) -> Trained:
    """The classifier that MODULE:FUNCTION returns, of which no more is known than its images."""
    model, classes = build_own(path), images.classes
    about = About(
        "plain",
        path,
        images.images.shape[1],
        len(classes),
        dataset,
        epsilon=0.0,
        class_names=classes,
    )
    return Trained(name or path.partition(":")[2], about, model)
