"""Check that relative links in the repository's Markdown lead to files, and their anchors to headings."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ROOT / "docs" / "api"
"""Pages that `make site` writes and whose links it checks."""
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|<img[^>]+src=\"([^\"]+)\"")
HEADING = re.compile(r"^#+\s+(.+)$", re.MULTILINE)


def main() -> int:
    """Print each broken link; return 1 if there is one."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    pages = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    broken = [message for page in pages for message in check_page(ROOT / page)]
    print(*broken, f"{len(pages)} pages, {len(broken)} broken links", sep="\n")
    return bool(broken)


def check_page(page: Path) -> list[str]:
    """Return a message for each broken link of a page."""
    messages = []
    for match in LINK.finditer(FENCED.sub("", page.read_text())):
        link = match[1] or match[2]
        if re.match(r"[a-z]+:", link):
            continue  # another site
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if target.resolve().is_relative_to(GENERATED):
            continue
        if not target.exists():
            messages.append(f"{page.relative_to(ROOT)}: {link} does not exist")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            messages.append(f"{page.relative_to(ROOT)}: {link} names no heading")
    return messages


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = HEADING.findall(FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    sys.exit(main())
