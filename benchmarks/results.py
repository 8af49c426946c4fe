"""What the comparisons found, as JSON, as text, and as a page of tables and bars."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["as_text", "keep", "load", "write"]

_JSON = "results.json"
_PICTURES = "pictures"
_OURS, _BASE, _THEIRS = "#c2410c", "#9a9a9a", "#c9c9c9"
# Beyond this, bars are drawn on a logarithmic scale.
_SPAN = 12.0

HEAD = """# Results

Written by `python -m benchmarks`; do not edit. Sides of a table take turns in one process, or in
processes that alternate. A ratio is the median over the rounds of a side's time divided by the
base's in the same round; in brackets the quartiles. Only ratios travel to other machines.
"""


def load(folder: Path) -> dict[str, Any]:
    """The sections by name; none if nothing was measured yet."""
    path = folder / _JSON
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(folder: Path, name: str, section: Mapping[str, Any]) -> None:
    """Puts a section in the place of what was measured before."""
    found = {**load(folder), name: section}
    text = json.dumps(_rounded(found), indent=1, sort_keys=True) + "\n"
    _replace(folder / _JSON, text.encode())


def write(folder: Path, order: Sequence[str]) -> None:
    """Writes RESULTS.md and its pictures from the JSON."""
    found = load(folder)
    names = [name for name in order if name in found]
    (folder / _PICTURES).mkdir(exist_ok=True)
    for old in (folder / _PICTURES).glob("*.svg"):
        old.unlink()
    parts = [HEAD, _machines([found[name] for name in names]), _aims(found, names)]
    for name in names:
        picture = draw(found[name], folder / _PICTURES / f"{name}.svg")
        parts.append(_section(name, found[name], picture))
    missing = [name for name in order if name not in found]
    if missing:
        parts.append(f"Not measured: {', '.join(missing)}.\n")
    _replace(folder / "RESULTS.md", "\n".join(parts).encode())


def as_text(section: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """A section for a terminal; where a ratio is clearly another than ``before``, it says so."""
    earlier = {
        (case["name"], row["side"]): row
        for case in (before or {"cases": ()})["cases"]
        for row in case["rows"]
    }
    lines = [f"\n{section['title']}{_marks(section)}"]
    for case in section["cases"]:
        lines.append(f"  {case['name']}")
        for row in case["rows"]:
            base = " (base)" if row["side"] == case["base"] else ""
            was = _changed(row, earlier.get((case["name"], row["side"])))
            lines.append(
                f"    {row['ratio']:8.3g} x  {shown(row['seconds']) + '/' + case['per']:>16}  "
                f"{row['side']}{base}{was}"
            )
        lines += [f"    missing: {side}: {why}" for side, why in case["missing"].items()]
        lines += [f"    {_aim_words(aim)}" for aim in case["aims"]]
    return "\n".join(lines)


def shown(seconds: float) -> str:
    """Seconds in the unit that suits them.

    >>> [shown(x) for x in (12.34, 0.01234, 1.234e-5, 3e-7)]
    ['12.3 s', '12.3 ms', '12.3 µs', '0.3 µs']
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    raise AssertionError


def draw(section: Mapping[str, Any], path: Path) -> Path:
    """One bar a side, of its ratio to the base, case after case."""
    from matplotlib.figure import Figure

    bars: list[tuple[float, str, float, str]] = []
    heads, y = [], 0.0
    for case in section["cases"]:
        heads.append((y, f"{case['name']}: time / {case['base']}"))
        y += 1
        for row in sorted(case["rows"], key=lambda row: row["ratio"]):
            colour = _BASE if row["side"] == case["base"] else _THEIRS
            colour = _OURS if _is_ours(row["side"]) else colour
            bars.append((y, row["side"], row["ratio"], colour))
            y += 1
        y += 0.6
    figure = Figure(figsize=(8, 0.6 + 0.24 * y))
    axes = figure.add_axes((0.36, 0.25 / (0.6 + 0.24 * y), 0.58, 1 - 0.35 / (0.6 + 0.24 * y)))
    axes.barh([b[0] for b in bars], [b[2] for b in bars], 0.8, color=[b[3] for b in bars])
    ratios = [bar[2] for bar in bars]
    if max(ratios) / min(ratios) > _SPAN:
        axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([b[0] for b in bars], [b[1] for b in bars], fontsize=8)
    for at, words in heads:
        axes.text(-0.6, at, words, transform=axes.get_yaxis_transform(), fontsize=8.5, va="center",
                  weight="bold")  # fmt: skip
    for at, _, ratio, _ in bars:
        axes.text(ratio, at, f" {ratio:.3g}", fontsize=7.5, va="center")
    axes.set_ylim(y, -0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "batchramp", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    return path


def _changed(row: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> str:
    """ "was ..." if the quartiles of then and now do not meet."""
    if earlier is None:
        return ""
    apart = row["ratio_low"] > earlier["ratio_high"] or row["ratio_high"] < earlier["ratio_low"]
    return f"  <- was {earlier['ratio']:.3g} x" if apart else ""


def _is_ours(side: str) -> bool:
    return side.startswith(("QHM", "batchramp", "TensorLoader", "fit", "theory"))


def _machines(sections: Sequence[Mapping[str, Any]]) -> str:
    machines = {json.dumps(section["machine"], sort_keys=True) for section in sections}
    lines = []
    for text in sorted(machines):
        facts = json.loads(text)
        lines.append(", ".join(f"{key} {value}" for key, value in facts.items()) + ".\n")
    words = "Machine" if len(lines) == 1 else "Machines, of which each section names its own"
    return f"{words}: " + "\n".join(lines) if lines else ""


def _aims(found: Mapping[str, Any], names: Sequence[str]) -> str:
    lines = ["## Aims", "", "| | limit | found | |", "|---|---|---|---|"]
    causes = []
    for name in names:
        section = found[name]
        for case in section["cases"]:
            for aim in case["aims"]:
                verdict = "reached" if aim["reached"] else "**not reached**"
                middle = _ratio(aim["value"], aim["low"], aim["high"])
                lines.append(
                    f"| {case['name']}: {_what(aim)} | {_limit(aim)} | {middle} | "
                    f"{verdict}{_marks(section)} |"
                )
                if not aim["reached"]:
                    cause = " ".join(aim["cause"].split()) or "cause not known"
                    causes.append(f"- {case['name']}, {aim['side']}: {cause}.")
    if causes:
        lines += ["", "Why not:", "", *dict.fromkeys(causes)]
    return "\n".join(lines) + "\n"


def _section(name: str, section: Mapping[str, Any], picture: Path) -> str:
    facts = section["machine"]
    lines = [
        f"## {section['title']}{_marks(section)}",
        "",
        section["note"],
        "",
        f"`python -m benchmarks --only {name}`, {section['date']}, {section['seconds']} s; others "
        f"used {_cores(section['others'])} meanwhile; {facts['processor']}, {facts['cores']} "
        f"cores; OMP_WAIT_POLICY {section['wait policy']}.",
        "",
        f"![]({_PICTURES}/{picture.name})",
    ]
    for case in section["cases"]:
        rounds = "1 round" if case["rounds"] == 1 else f"{case['rounds']} rounds"
        lines += ["", f"**{case['name']}** ({rounds})", ""]
        lines += [f"| | per {case['per']} | / {case['base']} |", "|---|---|---|"]
        for row in case["rows"]:
            time = f"{shown(row['seconds'])} [{shown(row['low'])}, {shown(row['high'])}]"
            ratio = _ratio(row["ratio"], row["ratio_low"], row["ratio_high"])
            ratio = "1" if row["side"] == case["base"] else ratio
            lines.append(f"| {row['side']} | {time} | {ratio} |")
        if case["missing"]:
            lines += ["", "Missing:"]
            lines += [f"- {side}: `{why}`" for side, why in case["missing"].items()]
    return "\n".join(lines) + "\n"


def _marks(section: Mapping[str, Any]) -> str:
    marks = []
    if section["busy"]:
        marks.append(f"busy machine: others used {_cores(section['others'])}")
    if section["others"] is None:
        marks.append("nothing says whether the machine was quiet")
    if section["size"] != "full":
        marks.append(section["size"])
    return f" ({'; '.join(marks)})" if marks else ""


def _aim_words(aim: Mapping[str, Any]) -> str:
    verdict = "reached" if aim["reached"] else "NOT REACHED"
    return f"{verdict}: {_what(aim)} {_limit(aim)}, found {aim['value']:.3g}"


def _what(aim: Mapping[str, Any]) -> str:
    return f"{aim['side']} / {aim['over']}" if aim["over"] else aim["side"]


def _limit(aim: Mapping[str, Any]) -> str:
    limit = f"at most {aim['most']:g}" if aim["most"] is not None else f"at least {aim['least']:g}"
    return limit if aim["over"] else f"{limit} s"


def _ratio(middle: float, low: float, high: float) -> str:
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def _cores(others: float | None) -> str:
    return "unknown" if others is None else f"{others:.2f} cores"


def _rounded(value: Any) -> Any:
    """Numbers to six digits: more of them are noise in a diff."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    os.replace(new, path)
