"""One HTML page that says what an adaptation found, to somebody who has a browser and nothing else.

The page needs no network and runs no script: thumbnails are in it, and its content security policy forbids the rest. The images
that it is least sure of come first, each beside the support image that looks most like it.
"""

import base64
import html
from collections import Counter
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from mamllit.inference.outcome import HeadEstimate, Outcome, readable
from mamllit.inference.thumbnails import thumbnail
from mamllit.runs import durable

MOST = 1000  # query images that are drawn; predictions.csv has all
SUPPORT = 12  # images that are drawn of a class
Z95 = 1.959964

STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#5d666f;--page:#f6f7f8;--card:#fff;--line:#d9dde1;--accent:#2563a8;
--good:#1e7a3d;--bad:#b3261e;--doubt:#96690a;--doubt-page:#fff5db}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa4ad;--page:#14171a;--card:#1d2125;--line:#343a40;
--accent:#7db4ee;--good:#67c587;--bad:#ff8a80;--doubt:#f0c05a;--doubt-page:#2e2713}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:16px;font:16px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--page)}
h1{font-size:1.5rem;margin:.3em 0}h2{font-size:1.15rem;margin:1.6em 0 .5em}
p{margin:.4em 0}small,.soft{color:var(--soft)}
.box{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 14px;overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px 4px 0;text-align:left;font-weight:400;vertical-align:middle}
td.number{white-space:nowrap}
thead th{color:var(--soft);font-size:.85rem}
.bar{position:relative;width:min(34vw,260px);min-width:90px;height:12px;border-radius:6px;background:var(--line)}
.bar i{position:absolute;inset:0 auto 0 0;border-radius:6px;background:var(--accent)}
.bar b{position:absolute;top:3px;height:6px;border:1px solid var(--ink);border-width:0 2px;
background:linear-gradient(var(--ink),var(--ink)) center/100% 2px no-repeat}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(158px,1fr));gap:10px}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px;font-size:.87rem;min-width:0}
.card.unsure{background:var(--doubt-page);border-color:var(--doubt)}
.pair{display:flex;gap:6px;margin-bottom:6px}
.pair figure{margin:0;flex:3;min-width:0}.pair figure+figure{flex:2}
.pair figcaption,.name{font-size:.72rem;color:var(--soft);overflow-wrap:anywhere}
.t{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:#fff center/contain no-repeat;
border:1px solid var(--line);
border-radius:4px}
.gone{display:grid;place-items:center;text-align:center;font-size:.7rem;color:#5d666f}
.label{font-weight:600;overflow-wrap:anywhere}
.good{color:var(--good)}.bad{color:var(--bad)}.doubt{color:var(--doubt)}
.matrix td,.matrix th{padding:0;font-size:.8rem;text-align:center}
.matrix td{width:34px;min-width:34px;height:30px;border:1px solid var(--line)}
.matrix th{padding:2px 8px}.matrix tbody th{text-align:right;min-width:4.5em;max-width:12em;overflow-wrap:anywhere}
.matrix thead th{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left;padding:6px 2px}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(56px,1fr));gap:4px;margin:4px 0 12px}
details{margin-top:.6em}summary{cursor:pointer;color:var(--accent)}
@media(max-width:560px){.bar{width:56px;min-width:56px}.seconds{display:none}td,th{padding-right:6px}
.box{padding:10px}.box table{font-size:.85rem}}
"""


def write_report(outcome: Outcome, path: Path) -> None:
    """Write the page of an adaptation.

    Args:
        outcome: what was found; images that are gone or cannot be read have an empty frame.
        path: the file, e.g. `adapted/report.html`.

    Raises:
        OSError: if it cannot be written.
    """
    durable.write(path, report(outcome))


def report(outcome: Outcome) -> str:
    """The page as a text; see `write_report`."""
    order = outcome.probabilities.amax(-1).argsort(stable=True).tolist()
    drawn = order[:MOST]
    nearest = {int(outcome.nearest[i]) for i in drawn}
    shown = {i for own in _by_class(outcome).values() for i in own[:SUPPORT]} | nearest
    known = outcome.pictures
    pictures = {i: _uri(known[i] if known else thumbnail(outcome.support[i])) for i in sorted(shown)}
    rules = "".join(f".s{i}{{background-image:url({uri})}}" for i, uri in pictures.items() if uri)
    title = f"{_number(len(outcome.query), 'image')} in {_number(len(outcome.classes), 'class', 'classes')}"
    parts = [
        f"<h1>{title}</h1>",
        _summary(outcome),
        _notes(outcome.notes),
        _sure(outcome),
        _confusion(outcome),
        _images(outcome, drawn, pictures),
        _support(outcome, pictures),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';img-src data:;style-src 'unsafe-inline'\">"
        f"<title>mamllit: {title}</title><style>{STYLE}{rules}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def wilson(hits: float, number: int) -> tuple[float, float]:
    """Lower and upper bound of the 95% interval of a share (Wilson's).

    >>> tuple(round(share, 3) for share in wilson(10, 10))
    (0.722, 1.0)
    """
    share, weight = hits / number, Z95**2 / number
    half = Z95 * sqrt(share * (1 - share) / number + weight / (4 * number))
    low, high = ((share + weight / 2 + sign * half) / (1 + weight) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


# ---- the parts of the page ---------------------------------------------------------------------------------------------


def _summary(outcome: Outcome) -> str:
    hits, known = outcome.hits
    unsure = int(outcome.unsure.sum())
    said = [
        f"Predicted by <b>{_text(outcome.head)}</b> on <b>{_text(outcome.features)}</b> from "
        f"{_number(len(outcome.support), 'support image')}, in {outcome.seconds:.1f} s.",
        f"<b>{unsure}</b> of them {'is' if unsure == 1 else 'are'} unsure: the most probable class has less than "
        f"{100 * outcome.unsure_below:.0f}%.",
    ]
    if known:
        low, high = wilson(hits, known)
        said.append(
            f"Of the {known} whose class is known, <b>{hits}</b> are right: {100 * hits / known:.1f}% "
            f"(95% interval {100 * low:.1f} to {100 * high:.1f}); guessing would give {100 * outcome.chance:.1f}%."
        )
    return "".join(f"<p>{sentence}</p>" for sentence in said)


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f'<div class="box"><b>Please note</b>{"".join(f"<p>{_text(note)}</p>" for note in notes)}</div>'


def _sure(outcome: Outcome) -> str:
    """The estimate on the support, its interval, where it is from, and chance."""
    heading = "<h2>How sure is this?</h2>"
    if not outcome.estimates:
        return (
            f'{heading}<div class="box"><p>Unknown: every class has only one support image, so none could be held out '
            f"and predicted. Guessing would be right in {100 * outcome.chance:.1f}% of cases. Two images or more per class "
            "give an estimate here.</p></div>"
        )
    first = outcome.estimates[0]
    how = "leave-one-out" if first.folds == first.images else f"{first.folds} folds"
    sentence = (
        f"About <b>{first.percent}</b> right on new images like these, by <b>{how}</b>: each of "
        f"{_number(first.images, 'support image')} was predicted from the others, by a head that had not seen it. The "
        "interval, in brackets, contains the true value 95 times in 100."
    )
    if outcome.temperature is not None:
        sentence += f" The probabilities are calibrated on the same folds (temperature {outcome.temperature:.2g})."
    else:
        sentence += " The probabilities are not calibrated."
    rows = "".join(_estimate(estimate, i == 0) for i, estimate in enumerate(outcome.estimates))
    chance = 100 * outcome.chance
    rows += (
        f'<tr><th>guessing (chance)</th><td><div class="bar"><i style="width:{chance:.1f}%"></i></div></td>'
        f'<td class="number">{chance:.1f}%</td><td class="seconds"></td></tr>'
    )
    return (
        f'{heading}<div class="box"><p>{sentence}</p><table><thead><tr><th>head</th><th></th><th>right (95% interval)</th>'
        f'<th class="seconds">seconds</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _estimate(estimate: HeadEstimate, used: bool) -> str:
    low, high = (100 * bound for bound in estimate.ci95)
    bar = (
        f'<div class="bar"><i style="width:{100 * estimate.accuracy:.1f}%"></i>'
        f'<b style="left:{low:.1f}%;width:{high - low:.1f}%"></b></div>'
    )
    name = f"<b>{_text(estimate.head)}</b> (used)" if used else _text(estimate.head)
    return (
        f'<tr><th>{name}</th><td>{bar}</td><td class="number">{estimate.percent}</td><td class="seconds">{estimate.seconds:.2g}'
        "</td></tr>"
    )


def _confusion(outcome: Outcome) -> str:
    """True against predicted class, where some are known."""
    pairs = Counter((t, p) for t, p in zip(outcome.truth, outcome.labels, strict=True) if t is not None)
    if not pairs:
        return ""
    true = [name for name in outcome.classes if any(t == name for t, _ in pairs)]
    header = "".join(f"<th>{_text(name)}</th>" for name in outcome.classes)
    rows = []
    for name in true:
        total = sum(count for (t, _), count in pairs.items() if t == name)
        cells = []
        for guess in outcome.classes:
            count = pairs[name, guess]
            tone = "--good" if guess == name else "--bad"
            color = f"color-mix(in srgb,var({tone}) {round(70 * count / total)}%,transparent)"
            cells.append(f'<td style="background:{color}">{count}</td>' if count else "<td></td>")
        rows.append(f"<tr><th>{_text(name)}</th>{''.join(cells)}<th>{pairs[name, name]} of {total}</th></tr>")
    table = f"<thead><tr><td></td>{header}<th>right</th></tr></thead><tbody>{''.join(rows)}</tbody>"
    return (
        '<h2>Which classes are confused?</h2><div class="box"><p class="soft">Rows: the true class. Columns: the predicted one.'
        f'</p><table class="matrix">{table}</table></div>'
    )


def _images(outcome: Outcome, drawn: Sequence[int], pictures: dict[int, str]) -> str:
    names, labels, unsure = outcome.names, outcome.labels, outcome.unsure.tolist()
    cards = []
    for i in drawn:
        best = outcome.probabilities[i].topk(min(2, len(outcome.classes)))
        chosen, *others = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        near = int(outcome.nearest[i])
        like = outcome.classes[int(outcome.support_labels[near])]
        known = outcome.truth[i]
        verdict = "" if known is None else _verdict(known, labels[i])
        second = "".join(f'<div class="soft">or {_text(outcome.classes[c])} {100 * p:.0f}%</div>' for p, c in others)
        cards.append(
            f'<div class="card{" unsure" * unsure[i]}"><div class="pair"><figure>{_image(outcome.query[i], names[i])}</figure>'
            f"<figure>{_frame(pictures.get(near, ''), near, f'support image of {like}')}"
            f"<figcaption>nearest: {_text(like)}</figcaption></figure></div>"
            f'<div class="label">{_text(labels[i])} {100 * chosen[0]:.0f}%'
            f"{' <span class=doubt>unsure</span>' * unsure[i]}</div>{second}{verdict}"
            f'<div class="name">{_text(names[i])}</div></div>'
        )
    more = len(outcome.query) - len(drawn)
    left = f" {more} more, with higher confidence, are in predictions.csv." if more else ""
    return (
        f'<h2>The images, least confident first</h2><p class="soft">Left: the image; right: the support image most '
        f'similar to it.{left}</p><div class="cards">{"".join(cards)}</div>'
    )


def _verdict(known: str, label: str) -> str:
    return '<div class="good">right</div>' if known == label else f'<div class="bad">wrong: it is {_text(known)}</div>'


def _support(outcome: Outcome, pictures: dict[int, str]) -> str:
    rows = []
    for name, own in _by_class(outcome).items():
        frames = "".join(_frame(pictures.get(i, ""), i, f"support image of {name}") for i in own[:SUPPORT])
        left = f" (the first {SUPPORT} are shown)" if len(own) > SUPPORT else ""
        rows.append(f"<b>{_text(name)}</b> <small>{_number(len(own), 'image')}{left}</small><div class=strip>{frames}</div>")
    return (
        f"<h2>What it learned from</h2><details><summary>{_number(len(outcome.support), 'support image')} of "
        f"{_number(len(outcome.classes), 'class', 'classes')}</summary>{''.join(rows)}</details>"
    )


# ---- small things ------------------------------------------------------------------------------------------------------


def _by_class(outcome: Outcome) -> dict[str, list[int]]:
    """The support images of each class, by index."""
    found: dict[str, list[int]] = {name: [] for name in outcome.classes}
    for i, label in enumerate(outcome.support_labels.tolist()):
        found[outcome.classes[label]].append(i)
    return found


def _image(file: Path, name: str) -> str:
    if uri := _uri(thumbnail(file)):
        return f'<img class="t" src="{uri}" alt="{_text(name)}" loading="lazy">'
    return '<span class="t gone">cannot be read</span>'


def _uri(jpeg: bytes) -> str:
    """A JPEG file as a `data:` address; empty for none."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""


def _frame(uri: str, index: int, name: str) -> str:
    """A support image, whose pixels are in the page once however often it is shown."""
    if uri:
        return f'<span class="t s{index}" role="img" aria-label="{_text(name)}" title="{_text(name)}"></span>'
    return '<span class="t gone">no longer there</span>'


def _text(words: str) -> str:
    """Words from outside, harmless in HTML."""
    return html.escape(readable(words))


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
