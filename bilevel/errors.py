"""The library's exceptions and warnings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

_T = TypeVar("_T")


class BilevelError(ValueError):
    """Bad input. The message is one line: what is wrong, why, and the remedy.

    Applications print the line and end with exit status 2.

    Example:
        >>> raise BilevelError("steps is -1: a solve has no fewer than 0 steps; give 0, 1, …")
        Traceback (most recent call last):
        ...
        bilevel.errors.BilevelError: steps is -1: a solve has no fewer than 0 steps; give 0, 1, …
    """


class NonFiniteError(BilevelError, FloatingPointError):
    """A quantity of the game is NaN or infinite. The message names the term."""


class HypergradientWarning(UserWarning):
    """The leader's gradient should not be trusted. The message says why, and the remedy."""


def explained(problem: object, method: Callable[..., _T], *args: Any) -> _T:
    """Calls a method of a problem, with errors that explain a wrong batch.

    Args:
        problem: The problem.
        method: The method.
        *args: Its arguments, the batch last.

    Returns:
        What it returned.

    Raises:
        BilevelError: If the batch lacks the attribute or the key, or has no items at all, or the
            method takes a gradient in what does not require one, or changes y in place.
        AttributeError: If another object lacks an attribute.
        KeyError: If another object lacks a key.
        TypeError: If another object has no items.
        RuntimeError: If the method fails otherwise.
    """
    try:  # a context manager would cost as much as a small tensor operation, at each step
        return method(*args)
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        _explain(error, problem, batch=args[-1])
        raise


def _explain(error: Exception, problem: object, batch: object) -> None:
    name = type(problem).__name__
    if _is_unreadable(error, batch):
        raise BilevelError(
            f"{name} cannot read a batch of type {type(batch).__name__} ({error}): a batch must "
            "have the fields that the problem's own methods use; wrap what the loader yields, for "
            'example in a collections.namedtuple("Batch", "x y")'
        ) from error
    if isinstance(error, KeyError) and isinstance(batch, Mapping) and error.args:
        key, keys = error.args[0], ", ".join(map(repr, batch)) or "nothing"
        if key not in batch:
            raise BilevelError(
                f"{name} reads a key {key!r}, which the batch lacks (it has {keys}): give the "
                "batch that field or, if it is a key of another dict such as y, correct it there"
            ) from error
    if isinstance(error, RuntimeError) and "does not require grad" in str(error):
        raise BilevelError(
            f"{name} takes a gradient in something that does not require one "
            f"({first_line(error)}): while one player moves, the other's variables are constants; "
            "take torch.func.grad, whose result depends on them where they train, or, for one that "
            "is a constant, copies w.detach().requires_grad_() inside torch.enable_grad()"
        ) from error
    if isinstance(error, RuntimeError) and "leaf Variable that requires grad" in str(error):
        raise BilevelError(
            f"{name} changes y in place ({first_line(error)}): its gradient is taken at y as it "
            "was; compute a new tensor, y = y - 1 in place of y -= 1"
        ) from error


def _is_unreadable(error: Exception, batch: object) -> bool:
    """Whether it says that the batch lacks an attribute, or has no items (``None``), or no keys."""
    if isinstance(error, AttributeError):
        return error.name is not None and error.obj is batch
    kind = type(batch).__name__
    signs = f"'{kind}' object is not subscriptable", f"{kind} indices must be integers"
    return isinstance(error, TypeError) and str(error).startswith(signs)


def first_line(error: BaseException) -> str:
    r"""An error's message, without what torch adds to it on further lines.

    Args:
        error: The error.

    Returns:
        Its first line, up to a full stop.

    Example:
        >>> first_line(RuntimeError("no kernel. You can fix it.\nC++ CapturedTraceback:"))
        'no kernel'
    """
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")


def explain_changed_answer(error: RuntimeError) -> None:
    """Raises a clearer error if y* was changed in place; does nothing for other errors.

    Args:
        error: The error of a backward pass.

    Raises:
        BilevelError: If it is one of the answer of an adjoint.
    """
    if re.search("inplace.*(_Answer|_Recomputed)", str(error)):
        raise BilevelError(
            "the leader's loss changes y* in place, of which the adjoint has yet to take the "
            "derivative: compute a new tensor, y = y - 1 in place of y -= 1"
        ) from error


def explain_missing_derivative(error: RuntimeError, part: object) -> None:
    """Raises a clearer error if torch lacks a second derivative; does nothing for other errors.

    Args:
        error: The error of a backward pass.
        part: The adjoint or the schedule that differentiates a gradient.

    Raises:
        BilevelError: If it is one of a second derivative, or of checkpointed layers.
    """
    message = str(error)
    if "checkpoint: " in message:
        raise BilevelError(
            f"{part!r} has checkpointed layers computed again ({first_line(error)}), when the "
            "solve is over and the leader in another mode or with other parameters; give "
            "checkpoint(…, use_reentrant=False, context_fn=bilevel.recompute.kept(layers))"
        ) from error
    if any(sign in message for sign in _NO_SECOND_DERIVATIVE):
        raise BilevelError(
            f"{part!r} differentiates a gradient, and torch cannot "
            f"({first_line(error)}): the objective has an operation without second derivative; for "
            "attention use torch.nn.attention.sdpa_kernel(SDPBackend.MATH) within the objective, "
            "for recurrent networks torch.backends.cudnn.flags(enabled=False), leave networks "
            "uncompiled, or take an adjoint (Penalty) or schedule (Extragradient) with first "
            "derivatives only"
        ) from error


_NO_SECOND_DERIVATIVE = (
    "derivative for",  # "… is not implemented": fused attention, recurrent networks of cuDNN
    "does not currently support double backward",  # compiled networks
    "non-empty donated buffers",  # likewise, where their parameters need no gradient
)


def explain_inference_only(error: RuntimeError, problem: object) -> None:
    """Raises a clearer error where a network in evaluation mode has no gradient in its input.

    Args:
        error: The error of a backward pass.
        problem: The follower's problem.

    Raises:
        BilevelError: If it is one of such a network.
    """
    if any(sign in str(error) for sign in _INFERENCE_ONLY):
        raise BilevelError(
            f"{type(problem).__name__}.objective has no gradient in y where the leader is in "
            f"evaluation mode ({first_line(error)}): give the solver leader_mode='train', or turn "
            "the kernels for inference off by torch.backends.mha.set_fastpath_enabled(False) "
            "(attention) or torch.backends.cudnn.flags(enabled=False) (recurrent networks)"
        ) from error


_INFERENCE_ONLY = (
    "_transformer_encoder_layer_fwd",
    "_native_multi_head_attention",
    "cudnn RNN backward can only be called in training mode",
)


def raise_unknown(kind: str, name: str, known: Iterable[str], otherwise: str = "") -> NoReturn:
    """Raises the error for a name that does not exist, with the most similar one.

    Args:
        kind: What it should be the name of.
        name: The name.
        known: The names that exist.
        otherwise: The remedy if none of them is similar; by default it lists them.

    Raises:
        BilevelError: Always.

    Example:
        >>> raise_unknown("method", "pmg", ["plain", "pgm"])
        Traceback (most recent call last):
        ...
        bilevel.errors.BilevelError: there is no method 'pmg': did you mean pgm?
    """
    known = list(known)
    bare = {one.lstrip("-"): one for one in known}  # dashes make any two arguments similar
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1)
    similar = f"did you mean {bare[near[0]]}?" if near else ""
    remedy = similar or otherwise or f"choose from {', '.join(known)}"
    raise BilevelError(f"there is no {kind} {name!r}: {remedy}")


def few(names: Sequence[str]) -> str:
    """The first names of many.

    Args:
        names: The names.

    Returns:
        Five of them at most, and how many others there are.

    Example:
        >>> few(["a", "b"]), few([*"abcdefg"])
        ('a, b', 'a, b, c, d, e and 2 more')
    """
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def describe(part: object) -> str:
    """Describes a wrong argument in a few words.

    Args:
        part: Anything.

    Returns:
        Its type, and a dict's keys.

    Example:
        >>> describe(dict), describe({"a": 1}), describe(1), describe(None)
        ('the class dict', "a dict of ['a']", 'an int', 'None')
    """
    if part is None:
        return "None"
    if isinstance(part, type):
        return f"the class {part.__name__}"
    name = type(part).__name__
    article = "an" if name[0] in "AEIOaeio" else "a"  # "a Union", by the sound
    return f"{article} {name}" + (f" of {[*part]}" if isinstance(part, dict) else "")
