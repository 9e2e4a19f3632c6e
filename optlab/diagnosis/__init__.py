"""Diagnosis of a training run: what is wrong with it, how that shows, and what to try next.

>>> print(optlab.diagnose("runs/digits"))

`optlab.diagnose` reads what a run has logged, and what a probe measured; `RULES` are its rules, a function each.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from optlab._extras import need
from optlab.diagnosis._evidence import FLAT, Evidence, gather
from optlab.diagnosis._figure import draw
from optlab.diagnosis._findings import Finding
from optlab.diagnosis._rules import CURVE_RULES
from optlab.diagnosis._rules_of_data import DATA_RULES
from optlab.diagnosis._rules_of_model import MODEL_RULES
from optlab.diagnosis._rules_of_outcomes import OUTCOME_RULES
from optlab.diagnosis._rules_of_twins import TWIN_RULES
from optlab.diagnosis._watch import Watch

__all__ = ["FLAT", "RULES", "Diagnosis", "Evidence", "Finding", "Watch", "examine", "gather", "in_python"]

# In the order of their gravity: what explains the others comes first.
RULES = (*DATA_RULES, *MODEL_RULES, *TWIN_RULES, *OUTCOME_RULES, *CURVE_RULES)

UNSEEN = (
    "Curves don't show leaks between the splits, one class, an order of the examples, frozen layers, nor a head or an "
    "embedding under a rule for hidden matrices: a probe does."
)
UNENDED = "The run hasn't ended: it goes on, or was killed or interrupted."


@dataclass(frozen=True)
class Diagnosis:
    """The findings on one run. `print` shows them in words.

    Attributes:
        evidence: what the findings rest on.
        findings: the ills, gravest first, and then the notes; empty for a healthy run.
    """

    evidence: Evidence
    findings: tuple[Finding, ...]

    @property
    def name(self) -> str:
        """The run's folder, or "history"."""
        return self.evidence.name

    @property
    def steps(self) -> int:
        """The last logged step."""
        return int(self.evidence.steps[-1])

    @property
    def verdict(self) -> str:
        """The name of the gravest ill, or "healthy"."""
        return "healthy" if self.is_healthy else self.findings[0].name

    @property
    def command(self) -> str | None:
        """What to type next; None where nothing can be said.

        It tries the first ill's cure in a folder of its own, where a config's key is one. Else it probes a run of which
        the curves alone were read: in Python if the run has no config.
        """
        ill = next((finding for finding in self.findings if finding.severity == "ill"), None)
        if ill is not None and ill.settings and (self.is_probed or not ill.needs_probe):
            settings = " ".join(f"{key}={value}" for key, value in ill.settings.items())
            config, run = shlex.quote(f"{self.name}/config.json"), shlex.quote(f"{self.name}-next")
            return f"optlab train {config} {settings} --run {run}"
        if self.is_probed:
            return None
        if self.evidence.settings:
            return f"optlab diagnose {shlex.quote(self.name)} --probe"
        return f"{in_python(self.name, 'probe')}  # in Python, with what was trained"

    @property
    def is_healthy(self) -> bool:
        """True if no finding is an ill; notes may be there."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def is_probed(self) -> bool:
        """True if the data and the model were looked at, and not the curves alone."""
        return self.evidence.model is not None

    @property
    def is_unended(self) -> bool:
        """True if the run goes on, or was killed or interrupted: its last record isn't its end."""
        return self.evidence.outcome is None or self.evidence.outcome.startswith("interrupted")

    def __str__(self) -> str:
        lines = [f"{self.name}, {self.steps} steps: {self.verdict}"]
        if self.is_healthy and not self.is_probed:
            lines[0] += " by its curves"
            lines += textwrap.wrap(UNSEEN, 100)
        lines += [UNENDED] if self.is_unended else []
        for finding in self.findings:
            parts = {"because": finding.because, "try": finding.try_, "source": finding.source}
            lines += ["", f"{finding.severity}: {finding.name}"]
            for name, words in parts.items():
                lines += textwrap.wrap(words, 100, initial_indent=f"  {name:9}", subsequent_indent=" " * 11)
        return "\n".join(lines + (["", f"next: {self.command}"] if self.command else []))

    def markdown(self) -> str:
        """The same as a Markdown page."""
        parts = [f"# {self.name}: {self.verdict}", f"{self.steps} steps were logged."]
        parts += [UNSEEN] if self.is_healthy and not self.is_probed else []
        parts += [UNENDED] if self.is_unended else []
        for finding in self.findings:
            parts += [f"## {finding.name} ({finding.severity})", finding.because, f"**Try** {finding.try_}"]
            parts += [f"Source: {finding.source}"] if finding.source else []
        parts += [f"Next:\n\n    {self.command}"] if self.command else []
        return "\n\n".join(parts) + "\n"

    def write(self, folder: str | Path) -> None:
        """Writes diagnosis.md into a folder and, where Matplotlib is there, the evidence as diagnosis.png."""
        folder, text = Path(folder), self.markdown()
        if find_spec("matplotlib") is not None:
            self.plot(folder / "diagnosis.png")
            text += "\n![The evidence](diagnosis.png)\n"
        (folder / "diagnosis.md").write_text(text)

    def plot(self, file: str | Path) -> None:
        """Draws the evidence: losses, gradient norm, learning rate, and the layers' gradients after a probe."""
        need("Diagnosis.plot", "matplotlib")
        draw(self.evidence, f"{self.name}: {self.verdict}", file)


def in_python(name: str, *asked: str) -> str:
    """The call that looks into a run without a config, where `workload` and `tx` are what was trained.

    Args:
        name: the run's folder, or "history" for the variable.
        asked: "probe", "twins".
    """
    run = name if name == "history" else json.dumps(name, ensure_ascii=False)
    switches = "".join(f"{switch}=True, " for switch in asked)
    return f"print(optlab.diagnose({run}, {switches}workload=workload, tx=tx))"


def examine(evidence: Evidence) -> tuple[Finding, ...]:
    """The findings of all rules, ills first and the gravest of them first."""
    found = [finding for rule in RULES if (finding := rule(evidence)) is not None]
    found.sort(key=lambda finding: finding.severity == "note")  # stable: RULES stand in the order of their gravity
    found = [f for i, f in enumerate(found) if f.name not in {g.name for g in found[:i]}]
    if any(f.severity == "ill" and not f.needs_probe for f in found):  # a known cause leaves none open
        found = [f for f in found if not f.needs_probe]
    # What diverged shows every other ill as well: only causes that were seen, and notes, may stand beside it.
    if any(finding.is_fatal for finding in found):
        found = [f for f in found if f.is_fatal or f.is_cause or f.severity == "note"]
    return tuple(found)
