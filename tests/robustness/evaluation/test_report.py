"""The report of constructed evaluations."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from bilevel import BilevelError
from bilevel.experiment.style import INK
from bilevel.robustness.evaluation.examples import Example, plot_attacks
from bilevel.robustness.evaluation.plots import plot_curves
from bilevel.robustness.evaluation.records import records
from bilevel.robustness.evaluation.report import _standard_error, write_report
from bilevel.robustness.evaluation.results import Curve, Evaluation, Finding, Outcome
from bilevel.robustness.evaluation.verdict import headline, not_to_be_quoted

ABOUT = {"dataset": "digits", "date": "2021-04-13", "torch": "2.6", "command": "python a.py --n 1"}


class Page(HTMLParser):
    """A page's elements, its text and the text of its figures; every tag must be closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.drawn = ""
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "meta":  # the one element here that is never closed
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " * (tag in {"td", "th", "dd", "dt"})

    def handle_data(self, data: str) -> None:
        if "svg" in self.open:
            self.drawn += data
        elif "style" not in self.open:
            self.text += data

    def values(self, *attributes: str) -> list[str]:
        return [of[name] or "" for _, of in self.elements for name in attributes if name in of]

    def count(self, tag: str) -> int:
        return sum(tag == other for other, _ in self.elements)


def images(*broken: int) -> Tensor:
    """Which of 40 images are named."""
    return torch.isin(torch.arange(40), torch.tensor(broken))


def evaluation(name: str = "two-step-l2l") -> Evaluation:
    """36 of 40 are right; 10 are broken by one step, 5 more by many, 1 more by queries."""
    right = images(*range(36))
    one_step, many = images(*range(10)), images(*range(3, 15))
    left = right & ~one_step & ~many
    nothing = images()
    return Evaluation(
        name,
        eps=0.031,
        trained_eps=0.047,
        right=right,
        outcomes=(
            Outcome("FGSM", "one-step", right, one_step, 1.25),
            Outcome("PGM-20", "iterative", right, many, 17.5),
            Outcome("Square", "black-box", left, images(20), 301.75),
            Outcome("CW-L∞", "iterative", nothing, nothing, 2.0, "the loss became NaN"),
        ),
        curves=(
            Curve("ε", (0.0, 0.0155, 0.031, 1.0), (0.9, 0.712, 0.623, 0.0), 30),
            Curve("iterations", (1, 10, 100), (0.651, 0.634, 0.625), 25),
        ),
        findings=(
            Finding("one step is weaker", True, "5.1 points", "As it should be."),
            Finding("queries add nothing", False, "2.7 points", "Gradients may be masked."),
        ),
    )


def example(title: str, said: str) -> Example:
    clean = torch.rand(3, 4, 4)
    return Example(title, clean, (clean + 0.25).clamp(0, 1), "cat", said)


PICTURES = {"two-step-l2l": [example("PGM-20", "dog"), example("Square", "cat")]}


def report(folder: Path, *evaluations: Evaluation) -> tuple[str, str]:
    """The two pages."""
    write_report(str(folder), evaluations, PICTURES, ABOUT)
    return (folder / "report.html").read_text("utf-8"), (folder / "report.md").read_text("utf-8")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return report(tmp_path_factory.mktemp("one"), evaluation())


def test_the_page_is_well_formed_and_needs_nothing_else(tmp_path: Path) -> None:
    html, _ = report(tmp_path, evaluation(), evaluation("pgm"))
    page = Page(html)
    assert "http" not in html
    assert not re.search(r"@import|url\((?!#)", html)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    links = page.values("src", "href", "xlink:href", "srcset", "data")
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert INK not in html[html.index("<svg") :]  # figures take the page's colours


@pytest.mark.parametrize("robust", [0, 3, 40])
def test_the_standard_error_is_half_of_wilsons_interval(robust: int) -> None:
    one_sigma = math.erf(math.sqrt(1 / 2))
    low, high = binomtest(robust, 40).proportion_ci(one_sigma, method="wilson")
    assert _standard_error(robust / 40, 40) == pytest.approx((high - low) / 2)


@pytest.mark.parametrize(
    "figure",
    [
        *("40", "0.031", "0.047", "90.0%"),  # images, two ε, clean
        *("65.0%", "60.0%", "52.5%", "50.0%", "± 7.8%"),  # alone, worst case so far and at last
        *("36", "21", "10", "5", "1"),  # images attacked and newly broken
        *("1.2", "17.5", "301.8", "2.0"),  # seconds
        *("5.1 points", "2.7 points"),
        *("30", "25", "0.0155", "71.2%", "62.3%", "0.0%", "100", "65.1%", "63.4%", "62.5%"),
        *ABOUT.values(),
    ],
)
def test_every_figure_is_on_both_pages(one: tuple[str, str], figure: str) -> None:
    for text in (Page(one[0]).text, one[1]):
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d%]|\.\d)", " ".join(text.split()))


def test_what_is_said_is_on_both_pages(one: tuple[str, str]) -> None:
    """The sentences, what failed and why, what is missing; marks have a word beside the sign."""
    shown = evaluation()
    said = [headline(shown), *not_to_be_quoted(shown)]
    said += [part for finding in shown.findings for part in (finding.item, finding.sentence)]
    said += ["CW-L∞ gave no figure: the loss became NaN", "✓ passed", "✗ failed"]
    plain = re.sub(r"\*\*|\\", "", one[1])
    for text in (Page(one[0]).text, plain):
        assert [sentence for sentence in said if sentence not in text] == []


def test_an_attack_without_a_figure_shows_none(one: tuple[str, str]) -> None:
    assert "| CW-L∞ | iterative | – | – | – | – | 2.0 |" in one[1]
    (row,) = re.findall(r"<tr[^>]*><th[^>]*>CW-L∞.*?</tr>", one[0])
    assert "%" not in row


def test_the_summary_has_a_column_for_each_attack_on_every_image(one: tuple[str, str]) -> None:
    """Not for those that were run on survivors alone, or failed."""
    assert "| Classifier | Clean | Worst case | Verdict | FGSM | PGM-20 |" in one[1]
    assert "[✗ doubtful](#classifier-1) | 65.0% | 60.0% |" in one[1]
    (row,) = re.findall(r"✗ doubtful</a>(.*?)</tr>", one[0], re.DOTALL)
    assert re.findall(r"[\d.]+%", row) == ["65.0%", "60.0%"]
    assert evaluation().outcome("CW-L∞") is None


def test_newly_broken_images_add_up_to_the_worst_case() -> None:
    shown = evaluation()
    newly = sum(shown.newly_broken(outcome) for outcome in shown.outcomes)
    assert shown.clean - newly / len(shown.right) == pytest.approx(shown.worst_case)


def test_names_are_text(tmp_path: Path) -> None:
    """No name becomes markup, ends a cell, or is read as mathematics."""
    name = "<script>alert('$x_$')</script> & a|b `c` *d*"
    base = evaluation(name)
    shown = replace(
        base,
        outcomes=tuple(replace(outcome, name=name) for outcome in base.outcomes),
        findings=(Finding(name, True, name, name),),
    )
    write_report(tmp_path, [shown], {name: [example(name, name)]}, {name: name, "command": name})
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.count("script") == 0
    assert page.text.count(name) >= 12
    assert "<script>" in page.drawn
    markdown = (tmp_path / "report.md").read_text("utf-8")
    lines = [line for line in markdown.splitlines() if "`` " not in line]  # but for the command
    assert not any(re.search(r"(?<!\\)(<script|`|\$)", line) for line in lines)
    assert f"- command: `` {name} ``\n" in markdown  # as it is typed
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert set(cells) == {6, 8, 5, 3}  # summary, attacks, checklist, curves


def test_several_classifiers_are_compared(tmp_path: Path, one: tuple[str, str]) -> None:
    """A plot for each quantity at the top beside those of each; a link to each section."""
    html, markdown = report(tmp_path, evaluation(), evaluation("pgm"), evaluation("fgsm"))
    images = 1
    assert Page(one[0]).count("svg") == 2 + images
    assert Page(html).count("svg") == 2 * (1 + 3) + images
    for place, name in enumerate(("two-step-l2l", "pgm", "fgsm"), 1):
        assert f'href="#classifier-{place}"' in html
        assert f"](#classifier-{place})" in markdown
        assert f'<section id="classifier-{place}">\n<h2>{name}</h2>' in html
        assert f'<a id="classifier-{place}"></a>\n\n## {name}' in markdown


def test_the_pictures_are_files_beside_the_text(tmp_path: Path) -> None:
    _, markdown = report(tmp_path, evaluation())
    pictures = re.findall(r"\]\((.*\.png)\)", markdown)
    assert pictures == ["curves.png", "examples.png"]
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    bare = replace(evaluation("pgm"), outcomes=(), curves=(), findings=())
    html, markdown = report(tmp_path, replace(bare, trained_eps=None))
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.md"}
    assert Page(html).count("svg") == 0
    assert ".png" not in markdown
    for text in (html, markdown):
        assert "unknown" in text
        assert not any(title in text for title in ("Checklist", "Missing", "None"))


def test_a_curve_that_failed_is_not_drawn(tmp_path: Path) -> None:
    """Beside one that did not, and where none is left."""
    failed, whole = Curve("iterations", (), (), 25, "out of luck"), evaluation("whole")
    part = replace(evaluation("part"), curves=(evaluation().curves[0], failed))
    html, markdown = report(tmp_path, part, whole)
    assert markdown.count("### Accuracy against") == 3
    assert Page(html).count("svg") == 5  # of both, two and one
    html, markdown = report(tmp_path, replace(part, curves=(failed,)))
    assert "Accuracy against" not in html + markdown
    assert not [one for one in records(part) if one.get("quantity") == "iterations"]


def test_images_show_the_answer_and_how_far_a_pixel_moved(one: tuple[str, str]) -> None:
    drawn = Page(one[0]).drawn
    assert all(text in drawn for text in ("cat", "→ dog ✗", "→ cat", "± 0.25", "PGM-20", "Square"))
    assert "→ cat ✗" not in drawn


def test_grey_images_are_grey_and_what_is_added_to_them_has_a_sign() -> None:
    grey = torch.rand(1, 4, 4)
    (axis,) = plot_attacks([Example("PGM-20", grey, 1 - grey, "cat", "dog")]).axes
    assert [image.get_cmap().name for image in axis.images] == ["gray", "RdBu_r", "gray"]


def test_colours_are_shown_as_they_are() -> None:
    clean, adversarial = torch.rand(2, 3, 4, 6)
    (axis,) = plot_attacks([Example("PGM-20", clean, adversarial, "cat", "dog")]).axes
    first, _, last = (torch.as_tensor(image.get_array()) for image in axis.images)
    assert torch.equal(first, clean.permute(1, 2, 0))
    assert torch.equal(last, adversarial.permute(1, 2, 0))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_that_are_no_colours_are_shown_as_their_mean(channels: int) -> None:
    """Matplotlib would take a fourth one for transparency, and refuse other numbers."""
    clean, adversarial = torch.rand(2, channels, 4, 6)
    (axis,) = plot_attacks([Example("PGM-20", clean, adversarial, "cat", "dog")]).axes
    first, delta, last = (torch.as_tensor(image.get_array()) for image in axis.images)
    torch.testing.assert_close(first, clean.mean(0))
    torch.testing.assert_close(last, adversarial.mean(0))
    scale = 2 * (adversarial - clean).abs().max()
    torch.testing.assert_close(delta, 0.5 + (adversarial - clean).mean(0) / scale)


def test_names_beside_lines_that_meet_are_apart() -> None:
    """Every line ends at 0; they are named in the order of what comes before."""
    shown = [evaluation(name) for name in ("first", "second", "third")]
    shown[1] = replace(shown[1], curves=(Curve("ε", (0.0, 0.031, 1.0), (0.9, 0.7, 0.0), 30),))
    (axis,) = plot_curves(["ε"], shown).axes
    heights = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert list(heights) == ["first", "third", "second"]
    first, third, second = heights.values()
    assert first >= 0
    assert third - first > 0.07
    assert second - third > 0.07


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BilevelError, match="write to another folder") as error:
        report(tmp_path / "file" / "folder", evaluation())
    assert "\n" not in str(error.value)


def test_a_threat_model_that_is_no_ball_is_said_in_words(tmp_path: Path) -> None:
    turned = replace(evaluation("turned"), threat="rotations up to 0.5 rad")
    write_report(tmp_path, [turned, evaluation("moved")], pictures={}, about=ABOUT)
    text = (tmp_path / "report.md").read_text()
    assert "40 images, rotations up to 0.5 rad, perturbations up to ‖δ‖∞ ≤ 0.031" in text
    assert "withstand every attack at rotations up to 0.5 rad (clean" in headline(turned)
