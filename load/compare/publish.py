"""Writes a report where people read it: tables, charts and figures under docs/.

Owns the parts of docs/BENCHMARKS.md between its markers, and docs/benchmarks/. Refuses a report
of a short or broken run.
"""

import json

from processes import ROOT, Failed

PAGE = ROOT / "docs" / "BENCHMARKS.md"
FOLDER = ROOT / "docs" / "benchmarks"
NOT_RUN = "*Not run.*"
# Fewer have no range to speak of.
ROUNDS_MIN = 3


def without_details(report):
    """The report without the tools' own ones, which are long."""
    runs = [{key: value for key, value in run.items() if key != "detail"}
            for run in report["runs"]]
    return {**report, "runs": runs}


def fill(page, section, text):
    """The page with `text` between the markers of the section, such as `price:bars`."""
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise Failed(f"{PAGE} needs one line {begin} and, after it, one line {end}")
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}\n{text}\n{end}{after}"


def why_not(report):
    """Why a report is not fit to be published; None if it is."""
    if not report["complete"]:
        return "the run was interrupted"
    if report["options"]["quick"]:
        return "it was a run with --quick"
    if report["options"]["only"] or report["options"]["work"]:
        return "it was a run of a part, with --only or --work"
    if report["options"]["rounds"] < ROUNDS_MIN:
        return f"it had fewer than {ROUNDS_MIN} rounds"
    return None


def publish(report, sections, images):
    """Writes the page, the images and the figures; `sections` gives the parts of the page."""
    reason = why_not(report)
    if reason:
        raise Failed(f"not published: {reason}")
    name, page = report["benchmark"], PAGE.read_text()
    for section, text in sections(report, images).items():
        page = fill(page, f"{name}:{section}", text or NOT_RUN)
    FOLDER.mkdir(exist_ok=True)
    for file, image in images.items():
        (FOLDER / file).write_text(image)
    (FOLDER / f"{name}.json").write_text(json.dumps(without_details(report), indent=1) + "\n")
    PAGE.write_text(page)
