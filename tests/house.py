"""The structure of the code in figures: `python -m tests.house [ROOT]` prints modules, lines, arrows, circles, longest chain.

An arrow is an import of one module of the house by another, wherever in the file it stands; a package's own file counts as a
module. A circle is a set of modules that import each other in a loop; the longest chain counts modules from one that nobody
imports down to one that imports none, circles taken as one.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

TOP = ("pipeline", "stages")


@dataclass(frozen=True)
class House:
    """The modules below pipeline/ and stages/ of a checkout, and who imports whom."""

    root: Path

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Dotted name -> file; a package has the name of its folder."""
        files = (path for top in TOP for path in sorted((self.root / top).rglob("*.py")))
        return {
            ".".join(path.relative_to(self.root).with_suffix("").parts).removesuffix(".__init__"): path
            for path in files
        }

    @cached_property
    def arrows(self) -> dict[str, set[str]]:
        """Module -> the modules that it imports."""
        return {name: set(self._imported(name, path)) - {name} for name, path in self.modules.items()}

    @cached_property
    def circles(self) -> list[list[str]]:
        """Sets of modules that import each other, each sorted (Tarjan's strongly connected components)."""
        return sorted(sorted(found) for found in self._components() if len(found) > 1)

    @cached_property
    def longest_chain(self) -> list[str]:
        """The longest way down, a module for each step; of a circle its first module."""
        group = {name: min(found) for found in self._components() for name in found}
        below = {
            key: {group[b] for a in group if group[a] == key for b in self.arrows[a]} - {key}
            for key in set(group.values())
        }
        chains: dict[str, list[str]] = {}

        def chain(key: str) -> list[str]:
            if key not in chains:
                chains[key] = [key, *max((chain(b) for b in sorted(below[key])), key=len, default=[])]
            return chains[key]

        return max((chain(key) for key in sorted(below)), key=len)

    @property
    def lines(self) -> int:
        """Lines of all modules."""
        return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in self.modules.values())

    def _imported(self, name: str, path: Path) -> Iterator[str]:
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (found for alias in node.names if (found := self._module(alias.name)))
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    found = self._module(f"{base}.{alias.name}") or self._module(base)
                    if found:
                        yield found

    def _module(self, dotted: str) -> str | None:
        name = dotted.removeprefix("clipsan.")
        return name if name in self.modules else None

    def _components(self) -> list[list[str]]:
        index: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        found: list[list[str]] = []

        def visit(name: str) -> None:
            index[name] = low[name] = len(index)
            stack.append(name)
            for other in sorted(self.arrows[name]):
                if other not in index:
                    visit(other)
                    low[name] = min(low[name], low[other])
                elif other in stack:
                    low[name] = min(low[name], index[other])
            if low[name] == index[name]:
                cut = stack.index(name)
                found.append(stack[cut:])
                del stack[cut:]

        for name in self.modules:
            if name not in index:
                visit(name)
        return found


def describe(house: House) -> str:
    """Return the figures as text."""
    arrows = sum(map(len, house.arrows.values()))
    lines = [
        f"modules        {len(house.modules)}",
        f"lines          {house.lines:,}",
        f"arrows         {arrows}",
        f"longest chain  {len(house.longest_chain)}: {' > '.join(house.longest_chain)}",
        f"circles        {len(house.circles)}",
        *(f"  {', '.join(circle)}" for circle in house.circles),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(describe(House(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]))))
