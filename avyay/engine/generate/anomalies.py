"""What the router finds unusual in its telemetry: latency, errors, spend. This closes the loop: traces become tasks."""

from __future__ import annotations

import re

from avyay.engine.generate.types import Found, Need, Site

__all__ = ["Anomalies"]

_WHAT = {
    "latency": "Find out what makes these calls slow: a larger prompt, a slower model, a retry, a missing cache.",
    "error_rate": "Find out which calls fail and why, and handle the cause: a limit, a bad request, a model gone.",
    "spend": "Find out what costs more: more calls, longer prompts, a dearer tier than the request class needs.",
}
_CONFIGS = ("avyay.yaml", "avyay.yml")


class Anomalies:
    """Alarms of the last full hour."""

    def find(self, site: Site) -> Found:
        if site.alarms is None:
            return Found.not_checked("there is no router to ask")
        needs = []
        for alarm in site.alarms().alarms():
            places = _places(site, alarm.series)
            needs.append(
                Need(
                    key=f"{alarm.series}:{alarm.signal}",
                    title=f"Unusual: {alarm.sentence}"[:120],
                    description=f"The router says: {alarm.sentence}. {_WHAT.get(alarm.signal, '')} See `avyay marga"
                    " anomalies`, `avyay marga stats` and `avyay marga decisions`. Change code or configuration so that"
                    " it does not come again, or write down why it is as it should be.",
                    evidence=(*places, f"marga:{alarm.series}/{alarm.signal}"),
                    accept="avyay marga anomalies",
                    files=tuple(dict.fromkeys(place.rsplit(":", 1)[0] for place in places)),
                    size="medium",
                    weight=min(1.0, 0.5 + alarm.deviations / 40),
                )
            )
        return Found(tuple(needs))


def _places(site: Site, series: str) -> tuple[str, ...]:
    """Where the repository names what the alarm is about: its configuration, else its code."""
    words = [word for word in re.split(r"[\s/:,]+", series) if len(word) > 3]
    for word in words:
        done = site.git.git("grep", "-nIwF", "--no-color", word, "--", *_CONFIGS, "*.py", "*.ts", "*.js", "*.go")
        rows = [row.split(":", 2) for row in done.text.splitlines()[:5]]
        if found := [f"{row[0]}:{row[1]}" for row in rows if len(row) == 3]:
            return tuple(found)
    return ()
