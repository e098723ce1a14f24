"""Check what no linter does: sizes of modules and functions, notes left open, tests that cannot fail, machine paths.

A module over 500 lines or a function over 80 fails; over 400 and 40 is said. Data modules that must be longer stand in
`scripts/size_exceptions.txt` with their own limit and the reason; an entry that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXCEPTIONS = "scripts/size_exceptions.txt"
MODULE_LINES, MODULE_WARNING = 500, 400
FUNCTION_LINES, FUNCTION_WARNING = 80, 40

# The brackets keep this file from finding itself.
OPEN_NOTE = re.compile(r"#.*\b(?:TO[D]O|FIX[M]E|XX[X])\b")
MACHINE_PATH = re.compile(r"(?<![\w.~$}-])/(?:work|home|root|Users|tm[p]|opt)/[\w.]")
ASSERTING = ("assert", "raises", "warns", "check", "expect", "approx")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    """One place; `fails` when it is more than worth a look."""

    place: str
    text: str
    fails: bool


def read_exceptions(text: str) -> dict[str, int]:
    """Read lines of `path[:function] limit reason`; blank lines and lines that start with # are left out."""
    limits: dict[str, int] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, limit, _reason = line.split(maxsplit=2)
            limits[name] = int(limit)
    return limits


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Yield every function with its dotted name, nested ones and methods too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield prefix + node.name, node
        inner = f"{prefix}{node.name}." if isinstance(node, (Function, ast.ClassDef)) else prefix
        yield from functions(node, inner)


def check_size(name: str, lines: int, limit: int, warning: int, exceptions: dict[str, int]) -> Iterator[Finding]:
    """Compare one size with its limits; `exceptions` names the ones that may be larger."""
    allowed = exceptions.get(name)
    if allowed is not None:
        if lines > allowed:
            yield Finding(name, f"{lines} lines, over its exception of {allowed}", True)
        elif lines <= limit:
            yield Finding(name, f"{lines} lines need no exception; remove it from {EXCEPTIONS}", True)
    elif lines > limit:
        yield Finding(name, f"{lines} lines, over {limit}", True)
    elif lines > warning:
        yield Finding(name, f"{lines} lines, over {warning}", False)


def check_source(name: str, text: str, exceptions: dict[str, int]) -> Iterator[Finding]:
    """Check one Python file of the package, the benchmarks or the scripts."""
    yield from check_size(name, text.count("\n"), MODULE_LINES, MODULE_WARNING, exceptions)
    for function, node in functions(ast.parse(text)):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        yield from check_size(f"{name}:{function}", lines, FUNCTION_LINES, FUNCTION_WARNING, exceptions)


def check_tests(name: str, text: str) -> Iterator[Finding]:
    """Find test functions in which nothing can fail."""
    for function, node in functions(ast.parse(text)):
        is_test = function.rpartition(".")[2].startswith("test")
        if is_test and not any(word in ast.dump(node).lower() for word in ASSERTING):
            yield Finding(f"{name}:{function}", "asserts nothing", True)


def check_lines(name: str, text: str, pattern: re.Pattern[str], what: str) -> Iterator[Finding]:
    """Find the lines that match `pattern`."""
    for number, line in enumerate(text.splitlines(), 1):
        if pattern.search(line):
            yield Finding(f"{name}:{number}", f"{what}: {line.strip()[:80]}", True)


def find(root: Path, *patterns: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of the files that match, without those that are built."""
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        name = path.relative_to(root).as_posix()
        if not name.startswith("docs/generated/"):
            yield name, path.read_text(encoding="utf-8")


def check(root: Path) -> list[Finding]:
    """Check the whole tree under `root`."""
    exceptions = read_exceptions((root / EXCEPTIONS).read_text(encoding="utf-8"))
    sources = dict(find(root, "src/**/*.py", "benchmarks/**/*.py", "scripts/**/*.py"))
    tests = dict(find(root, "tests/**/*.py"))
    prose = dict(find(root, "*.md", "docs/**/*.md", "src/**/*.md", "recipes/*", "benchmarks/*.md"))
    found = [finding for name, text in sources.items() for finding in check_source(name, text, exceptions)]
    found += [finding for name, text in tests.items() for finding in check_tests(name, text)]
    for name, text in (sources | tests | prose).items():
        found += check_lines(name, text, OPEN_NOTE, "left open")
    for name, text in (sources | prose).items():
        found += check_lines(name, text, MACHINE_PATH, "a path of one machine")
    for name in exceptions:
        if name.partition(":")[0] not in sources:
            found.append(Finding(name, f"is no file; remove it from {EXCEPTIONS}", True))
    return found


def main() -> int:
    """Print the findings; return 1 when one of them fails."""
    found = check(ROOT)
    for finding in sorted(found, key=lambda finding: (finding.fails, finding.place)):
        print(f"{'FAILS' if finding.fails else 'look'}  {finding.place}: {finding.text}")
    return int(any(finding.fails for finding in found))


if __name__ == "__main__":
    sys.exit(main())
