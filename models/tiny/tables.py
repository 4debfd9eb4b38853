"""Tables of findings.py: for each finding its arms, what they are asked, and how sure a difference is."""

import json
import os
import re
import statistics
from dataclasses import dataclass

# What must be the same in all trainings of a directory.
SETTINGS = ["steps", "batch", "pictures", "count"]
# Student's t, both sides, 95 %, for 1, 2, 3 ... degrees of freedom.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


@dataclass(frozen=True)
class Finding:
    claim: str
    arms: dict  # {arm: its name in the table}; each is compared with the one before
    rows: tuple  # (name, held-out questions or {arm: them}, metric)


def _exact(*tasks):
    return tuple((task, task, "exact") for task in tasks)


_DETECT = (("detect, F1", "detect", "F1"), ("detect, box IoU", "detect", "box IoU"))
_SMALL = (("small things, F1", "small detect", "F1"), ("small things, box IoU", "small detect", "box IoU"),
          ("small things, shape", "small shape", "exact"))
_LONG = {"padded": "padded", "square": "square"}

FINDINGS = [
    Finding("Resolution helps text, charts and small objects",
            {"side56": "56 px", "side112": "112 px", "side224": "224 px"},
            (*_exact("ocr", "chart"), *_SMALL, *_DETECT, *_exact("count", "colour", "where", "caption"))),
    Finding("Plain square resize is as good as aspect-preserving for segmentation",
            {"padded": "padded", "square": "square"},
            (("box, F1", _LONG, "F1"), ("box IoU", _LONG, "box IoU"), ("codes", _LONG, "codes"),
             ("mask IoU", _LONG, "mask IoU"))),
    Finding("Freezing the encoder in stage 1 hurts position tasks",
            {"frozen": "frozen", "baseline": "not frozen"},
            (*_exact("where", "compare"), *_DETECT, *_exact("size", "colour", "shape", "count", "yesno", "ocr", "chart"))),
    Finding("Prefix-LM beats causal masks on the prefix",
            {"causal": "causal", "baseline": "prefix-LM"},
            (*_exact("colour", "shape", "count", "yesno", "where", "size", "compare", "ocr", "caption", "chart"), *_DETECT)),
    Finding("A red box works as well as coordinates in the prompt",
            {"coordinates": "coordinates", "baseline": "red box"},
            (("what is in the box", {"coordinates": "twin", "baseline": "marked"}, "exact"), *_exact("colour", "shape"))),
    Finding("No gain from RoPE interpolation of image tokens at stage 2",
            {"side224": "plain", "interpolated": "interpolated"},
            (*_exact("ocr", "chart"), *_SMALL, *_DETECT, *_exact("count", "colour", "where", "caption"))),
]


def collect(path):
    """All results of a run, {"settings", "results"}; also written to its findings.json. A file of that kind is read."""
    if os.path.isfile(path):
        with open(path) as f:
            return json.load(f)
    found, directory = {"settings": {}, "results": []}, os.path.join(path, "results")
    with open(os.path.join(path, "settings.json")) as f:
        found["settings"] = json.load(f)
    for name in sorted(os.listdir(directory)):
        if name.endswith(".json"):
            with open(os.path.join(directory, name)) as f:
                found["results"].append(json.load(f))
    whole = os.path.join(path, "findings.json")
    with open(whole + ".part", "w") as f:
        json.dump(found, f)
    os.replace(whole + ".part", whole)
    return found


def _percent(values):
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _difference(pairs):
    """-> cell, and 1, -1 or 0: surely above nothing, below, or neither."""
    values = [100 * (b - a) for a, b in pairs]
    middle = statistics.mean(values)
    if len(values) < 2:
        return f"{middle:+.1f}", 0
    half = STUDENT[min(len(values) - 1, len(STUDENT)) - 1] * statistics.stdev(values) / len(values) ** 0.5
    cell, sure = f"{middle:+.1f} ± {half:.1f}", (middle > half) - (middle < -half)
    return f"**{cell}**" if sure else cell, sure


def _table(number, finding, scores):
    """`scores`: {arm: {seed: {held: {metric: share}}}}; seeds that have all arms count."""
    arms = list(finding.arms)
    seeds = sorted(set.intersection(*(set(scores.get(arm, {})) for arm in arms)))
    lines = [f"### {number}. {finding.claim}", ""]
    if not seeds:
        return "\n".join([*lines, "No seed has all arms of it yet."])
    versus = [(a, b, f"{finding.arms[b]} − {finding.arms[a]}") for a, b in zip(arms, arms[1:])]
    lines.append("| " + " | ".join(["%", *finding.arms.values(), *(name for *_, name in versus)]) + " |")
    lines.append("|---" * (1 + len(arms) + len(versus)) + "|")
    values = {}
    for name, held, metric in finding.rows:
        values[name] = {arm: [scores[arm][seed][held[arm] if isinstance(held, dict) else held][metric] for seed in seeds]
                        for arm in arms}
    values["mean of these"] = {arm: [statistics.mean(v) for v in zip(*(row[arm] for row in values.values()))]
                               for arm in arms}
    tally = {name: [] for *_, name in versus}
    for row, of in values.items():
        cells = [_percent(of[arm]) for arm in arms]
        for a, b, name in versus:
            cell, sure = _difference(list(zip(of[a], of[b])))
            cells.append(cell)
            if row != "mean of these":
                tally[name].append(sure)
        lines.append("| " + " | ".join([row, *cells]) + " |")
    many = f"{len(seeds)} seeds." if len(seeds) > 1 else "One seed, so nothing can be said of chance."
    if len(seeds) > 1:
        for name, sure in tally.items():
            many += f" {name}: interval above 0 in {sure.count(1)} of {len(sure)} rows, below in {sure.count(-1)}."
    return "\n".join([*lines, "", many])


def _parts(found):
    """{name: text} of what is made anew: what was trained, and the tables."""
    scores, done = {}, found["results"]
    for result in done:
        scores.setdefault(result["arm"], {})[result["seed"]] = result["scores"]
    steps, batch, pictures, count = (found["settings"][k] for k in SETTINGS)
    seconds = sum(r["seconds"] for r in done)
    devices = " and ".join(sorted({r["device"] for r in done})) or "nothing"
    head = (f"{len(done)} trainings on {devices}: {steps[0]}, {steps[1]} and {steps[2]} steps of stages 0, 1 and 2, {batch} pictures "
            f"with questions a step, {pictures:,} of them drawn for stage 1, {count:,} held-out questions for each row; "
            f"{seconds / max(1, len(done)):.0f} s a training, many at a time.")
    return {"trainings": head, **{f"table {i}": _table(i, f, scores) for i, f in enumerate(FINDINGS, 1)}}


def markdown(found):
    """All of it."""
    return "\n\n".join(_parts(found).values())


def put(found, path):
    """Puts every part into a file between its marks, `<!-- table 1 -->` and `<!-- end -->`; all else stays as it is."""
    with open(path) as f:
        text = f.read()
    for name, part in _parts(found).items():
        marks = re.compile(rf"(<!-- {name} -->\n)(?:(?!<!--).)*(<!-- end -->)", re.S)
        text, count = marks.subn(lambda m: f"{m[1]}\n{part}\n\n{m[2]}", text)
        if count != 1:
            raise SystemExit(f"Cannot put tables into {path}: expected <!-- {name} --> and <!-- end --> once, found {count}")
    with open(path + ".part", "w") as f:
        f.write(text)
    os.replace(path + ".part", path)
