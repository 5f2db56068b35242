"""Write the tables of README.md and of docs from the JSON files in benchmarks/results, and from the package.

python -m benchmarks.tables            rewrites the text between the table markers
python -m benchmarks.tables --check    only checks whether anything would change; exit 1 if so
"""

import argparse
import re
import sys

from benchmarks.tables import (
    bouncing_balls,
    comparing,
    games,
    mechanisms,
    performance,
    readme,
    reinforcement_learning,
    results,
    scaling,
    screen,
    tasks,
)
from benchmarks.tables.shared import ROOT, Tables

PAGES = {
    "README.md": readme,
    "docs/bouncing_balls.md": bouncing_balls,
    "docs/mechanisms.md": mechanisms,
    "docs/performance.md": performance,
    "docs/comparing.md": comparing,
    "docs/reinforcement_learning.md": reinforcement_learning,
    "docs/games.md": games,
    "docs/scaling.md": scaling,
    "docs/when_to_use_a_rim.md": readme,
    "docs/competition.md": results,
    "docs/results.md": results,
    "docs/tasks.md": tasks,
    "docs/research/screen.md": screen,
}
"""Pages and the modules of their tables. README.md shows tables of the other pages too."""
TABLES: Tables = {name: build for page in PAGES.values() for name, build in page.TABLES.items()}


def fill(text: str) -> str:
    """Return ``text`` with every marked table replaced by the present one."""
    for name, build in TABLES.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- end -->)"  # an empty table ends at its own end
        text = re.sub(
            pattern, lambda found, build=build: f"{found[1]}{build()}\n{found[2]}", text, flags=re.DOTALL
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    arguments = parser.parse_args()
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    if lost := [name for name in TABLES if f"<!-- table:{name} -->" not in pages]:
        sys.exit(f"No page has a place for the table {lost[0]!r}.")
    for page in PAGES:
        path = ROOT / page
        old = path.read_text()
        new = fill(old)
        if not arguments.check:
            path.write_text(new)
        elif new != old:
            sys.exit(f"{page}: a table is stale; run `make docs`.")


if __name__ == "__main__":
    main()
