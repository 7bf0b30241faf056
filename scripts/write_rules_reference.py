"""Write docs/rules.md from the rules. Run it after adding or changing one; a test compares."""

from __future__ import annotations

from pathlib import Path

from avyay.raksha.engines.bandit import BanditEngine
from avyay.raksha.reference import render_reference
from avyay.raksha.registry import PatternRules, load_checks
from avyay.raksha.types import Rule


def all_rules() -> list[Rule]:
    """Every packaged rule."""
    checks = [rule for check in load_checks(plugins=False).values() for rule in check.RULES]
    return [*checks, *PatternRules().rules.values(), *BanditEngine().rules()]


if __name__ == "__main__":
    path = Path(__file__).parents[1] / "docs" / "rules.md"
    path.write_text(render_reference(all_rules()))
    print(f"{path}: {len(all_rules())} rules")
